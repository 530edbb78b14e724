"""The outcome of a comparison as plain data: what `results.json` holds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import our_rows
from promptnet.evaluation.subjects.score import METRICS, RowScores
from promptnet.io.files import write_text
from promptnet.metrics.bootstrap import Interval, difference, interval, ratio

Results = dict[str, Any]

CEILING_SHARE = 0.85
"""What share of the real re-rendering's score the best row has to reach."""


def summarise(scores: Mapping[str, RowScores], settings: Mapping[str, Any], curves: Mapping[str, Any]) -> Results:
    """Intervals of every row and metric, the accuracies field by field, the claims, and every person's numbers."""
    return {
        "rows": {name: row_intervals(row) for name, row in scores.items()},
        "claims": claims(scores),
        "curves": dict(curves),
        "fields": {name: dict(row.fields) for name, row in scores.items()},
        "settings": dict(settings),
        "people": {name: {key: list(map(float, row.people[key])) for key in METRICS} for name, row in scores.items()},
    }


def row_intervals(row: RowScores) -> dict[str, dict[str, float]]:
    """Metric to its mean over people with the bootstrap interval."""
    return {metric: interval(row.people[metric]).record() for metric in METRICS}


def save_results(results: Results, path: Path) -> None:
    """Write `results.json`, whole or not at all."""
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Claim:
    """One statement about the rows and whether these people bear it out."""

    statement: str
    holds: bool
    figures: Mapping[str, Interval]

    def record(self) -> dict[str, Any]:
        """The claim as `results.json` writes it."""
        figures = {name: figure.record() for name, figure in self.figures.items()}
        return {"statement": self.statement, "holds": self.holds, "figures": figures}


def claims(scores: Mapping[str, RowScores]) -> dict[str, dict[str, Any]]:
    """The claims whose rows were drawn."""
    found = {}
    if {"published-profusion", "published-plain-guidance-tuned"} <= scores.keys():
        found["fusion-pays"] = _apart(scores, "published-profusion", "published-plain-guidance-tuned")
    if {"best", "published-profusion"} <= scores.keys():
        found["beyond-published"] = _apart(scores, "best", "published-profusion")
    if "best" in scores and any(name in scores for name in our_rows()):
        found["best-is-best"] = _none_above_best(scores)
    if {"best", "ceiling"} <= scores.keys():
        found["near-the-ceiling"] = _near_ceiling(scores)
    return {name: claim.record() for name, claim in found.items()}


def _apart(scores: Mapping[str, RowScores], upper: str, lower: str) -> Claim:
    first, second = scores[upper].people["harmonic"], scores[lower].people["harmonic"]
    statement = f"{upper} is above {lower} on the harmonic mean, intervals apart"
    # Stricter than a paired difference above 0, which is given beside it.
    figures = {"paired difference": difference(first, second), upper: interval(first), lower: interval(second)}
    return Claim(statement, interval(first).above(interval(second)), figures)


def _none_above_best(scores: Mapping[str, RowScores]) -> Claim:
    best = scores["best"].people["harmonic"]
    behind = {
        f"best minus {name}": difference(best, scores[name].people["harmonic"]) for name in our_rows() if name in scores
    }
    holds = all(figure.mean >= 0 for figure in behind.values())
    return Claim("no other row of our encoder is above best on the harmonic mean", holds, behind)


def _near_ceiling(scores: Mapping[str, RowScores]) -> Claim:
    best, ceiling = scores["best"].people, scores["ceiling"].people
    statement = f"best reaches {CEILING_SHARE} of the ceiling or more on identity and on attributes"
    if any(ceiling[metric].min() <= 0 for metric in ("identity", "attributes")):
        return Claim(f"{statement} (the judge cannot read the ceiling itself)", False, {})
    shares = {metric: ratio(best[metric], ceiling[metric]) for metric in ("identity", "attributes")}
    return Claim(statement, all(share.mean >= CEILING_SHARE for share in shares.values()), shares)
