"""Results of a comparison as plain data: the content of `results.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import our_methods
from promptnet.evaluation.subjects.score import METRICS, MethodScores
from promptnet.io.atomic import write_whole
from promptnet.metrics.bootstrap import Interval, difference, interval, ratio

Results = dict[str, Any]

CEILING_FRACTION = 0.85
"""Fraction of the real re-rendering's score that the best method must reach."""


def summarise(
    scores: Mapping[str, MethodScores],
    settings: Mapping[str, Any],
    curves: Mapping[str, Any],
    exact: Mapping[str, Any],
) -> Results:
    """Return the intervals of every method and metric, accuracies by field, the checks, and every person's numbers.

    Args:
        scores: of each method.
        settings: of the run.
        curves: as `curves.curve_records` returns them.
        exact: as `exact_results.summarise_exact` returns it.
    """
    return {
        "rows": {name: method_intervals(method) for name, method in scores.items()},
        "claims": checks(scores),
        "curves": dict(curves),
        "exact": dict(exact),
        "fields": {name: dict(method.fields) for name, method in scores.items()},
        "settings": dict(settings),
        "people": {
            name: {key: list(map(float, method.people[key])) for key in METRICS} for name, method in scores.items()
        },
    }


def method_intervals(method: MethodScores) -> dict[str, dict[str, float]]:
    """Return metric to its mean over people with the bootstrap interval."""
    return {metric: interval(method.people[metric]).record() for metric in METRICS}


def save_results(results: Results, path: Path) -> None:
    """Write `results.json` atomically."""
    write_whole(path, json.dumps(results, indent=1, allow_nan=False) + "\n", public=True)


@dataclass(frozen=True)
class Check:
    """A statement about the methods, and whether it holds for these people."""

    statement: str
    holds: bool
    figures: Mapping[str, Interval]

    def record(self) -> dict[str, Any]:
        """Return the check as `results.json` holds it."""
        figures = {name: figure.record() for name, figure in self.figures.items()}
        return {"statement": self.statement, "holds": self.holds, "figures": figures}


def checks(scores: Mapping[str, MethodScores]) -> dict[str, dict[str, Any]]:
    """Return the checks of the methods that have images."""
    found = {}
    if {"published-profusion", "published-plain-guidance-tuned"} <= scores.keys():
        found["fusion-pays"] = _apart(scores, "published-profusion", "published-plain-guidance-tuned")
    if {"best", "published-profusion"} <= scores.keys():
        found["beyond-published"] = _apart(scores, "best", "published-profusion")
    if "best" in scores and any(name in scores for name in our_methods()):
        found["best-is-best"] = _none_above_best(scores)
    if {"best", "ceiling"} <= scores.keys():
        found["near-the-ceiling"] = _near_ceiling(scores)
    return {name: check.record() for name, check in found.items()}


def _apart(scores: Mapping[str, MethodScores], upper: str, lower: str) -> Check:
    first, second = scores[upper].people["harmonic"], scores[lower].people["harmonic"]
    statement = f"{upper} is above {lower} on the harmonic mean, intervals apart"
    # Stricter than a paired difference above 0, which is given beside it.
    figures = {"paired difference": difference(first, second), upper: interval(first), lower: interval(second)}
    return Check(statement, interval(first).above(interval(second)), figures)


def _none_above_best(scores: Mapping[str, MethodScores]) -> Check:
    best = scores["best"].people["harmonic"]
    behind = {
        f"best minus {name}": difference(best, scores[name].people["harmonic"])
        for name in our_methods()
        if name in scores
    }
    holds = all(figure.mean >= 0 for figure in behind.values())
    return Check("no other method with our encoder is above best on the harmonic mean", holds, behind)


def _near_ceiling(scores: Mapping[str, MethodScores]) -> Check:
    best, ceiling = scores["best"].people, scores["ceiling"].people
    statement = f"best reaches {CEILING_FRACTION} of the ceiling or more on identity and on attributes"
    if any(ceiling[metric].min() <= 0 for metric in ("identity", "attributes")):
        return Check(f"{statement} (the judge cannot predict the ceiling itself)", False, {})
    fractions = {metric: ratio(best[metric], ceiling[metric]) for metric in ("identity", "attributes")}
    return Check(statement, all(each.mean >= CEILING_FRACTION for each in fractions.values()), fractions)
