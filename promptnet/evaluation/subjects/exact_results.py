"""Exact measures of every method, with intervals over people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptnet.datasets.avatars.colours import nearest_name
from promptnet.evaluation.harness.tasks import Person
from promptnet.evaluation.subjects.exact import ERRORS, SHARES, a_person, harmonic, share_of_way
from promptnet.metrics.bootstrap import interval
from promptnet.metrics.color_difference import Array

NOTHING = "prompt-only"
"""The method from which shares of the way to the truth are counted."""

PAIRS = (
    ("plain-guidance-tuned", "plain-guidance"),
    ("profusion", "plain-guidance-tuned"),
    ("published-profusion", "published-plain-guidance-tuned"),
    ("plain-guidance-tuned", "published-profusion"),
    ("best", "published-profusion"),
)
"""Methods that are compared person by person."""

Figures = Mapping[str, Array]


def summarise_exact(scores: Mapping[str, Figures], truth: Figures, people: Sequence[Person]) -> dict[str, Any]:
    """Return every method's exact measures and paired differences, with intervals over people.

    Args:
        scores: of each method, as `ExactScorer.score` returns them.
        truth: of the true renderings.
        people: whose images they are, with as many prompts each.

    Returns:
        `{"methods": {method: {measure: interval or None, "way": {error: interval or None}, "skin": {group: ...}}},
        "differences": {"first - second": {measure: interval or None}}}`. Without the method `prompt-only` nobody knows
        how long the way to the truth is: `harmonic` and `way` are None.
    """
    means = {name: _a_person(figures, people) for name, figures in scores.items()}
    nothing, whole = means.get(NOTHING), _a_person(truth, people)
    for figures in means.values():
        figures["harmonic"] = harmonic(figures, nothing, whole) if nothing else np.full(len(people), np.nan)
    skins = np.array([nearest_name("skin", person.identity.skin) for person in people])
    methods = {name: _method(figures, nothing, whole, skins) for name, figures in means.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= set(means)]
    return {
        "methods": methods,
        "differences": {f"{one} - {other}": _difference(means[one], means[other]) for one, other in pairs},
    }


def _a_person(figures: Figures, people: Sequence[Person]) -> dict[str, Array]:
    return {name: a_person(values, len(people[0].eval_prompts)) for name, values in figures.items()}


def _method(figures: Figures, nothing: Figures | None, truth: Figures, skins: np.ndarray) -> dict[str, Any]:
    way = {name: share_of_way(figures[name], nothing[name], truth[name]) if nothing else None for name in ERRORS}
    return {**{name: _known(figures[name]) for name in (*SHARES, *ERRORS)}, "way": way, "skin": _groups(figures, skins)}


def _difference(one: Figures, other: Figures) -> dict[str, Any]:
    return {name: _known(one[name] - other[name]) for name in (*SHARES, *ERRORS)}


def _known(values: Array) -> dict[str, float] | None:
    """Estimate the mean over the people to whom a measure applies, or None where it applies to nobody."""
    known = values[~np.isnan(values)]
    return interval(known).record() if len(known) else None


def _groups(figures: Figures, skins: np.ndarray) -> dict[str, Any]:
    """Return the errors of skin colour and of its lightness, by the word for the skin."""
    return {
        group: {
            "people": int((skins == group).sum()),
            "error": interval(figures["error_skin"][skins == group]).record(),
            "lightness": interval(figures["lightness_skin"][skins == group]).record(),
        }
        for group in sorted(set(skins.tolist()))
    }
