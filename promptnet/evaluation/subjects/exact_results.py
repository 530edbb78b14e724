"""Exact measures of every method, with intervals over people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from promptnet.datasets.avatars.colours import nearest_name
from promptnet.evaluation.subjects.exact import ERRORS, SHARES, a_person, harmonic, share_of_way
from promptnet.metrics.bootstrap import interval
from promptnet.metrics.color_difference import Array

PAIRS = (("tuned", "encode"), ("fusion", "tuned"), ("published-fusion", "published"), ("tuned", "published-fusion"))
"""Methods that are compared person by person."""


def summarise(scores: dict[str, dict[str, Array]], num_prompts: int, skins: Sequence[str]) -> dict[str, Any]:
    """Return every method's measures with intervals over people.

    Args:
        scores: of each method, `score`, images person by person.
        num_prompts: images a person.
        skins: exact skin colour of each person.
    """
    means = {
        method: {name: a_person(values, num_prompts) for name, values in figures.items()}
        for method, figures in scores.items()
    }
    for figures in means.values():
        figures["harmonic"] = harmonic(figures, means["prompt"], means["truth"])
    methods: dict[str, Any] = {}
    for method, figures in means.items():
        methods[method] = {name: _known(figures[name]) for name in (*SHARES, *ERRORS)}
        methods[method]["way"] = {
            name: share_of_way(figures[name], means["prompt"][name], means["truth"][name]) for name in ERRORS
        }
        methods[method]["skin"] = _by_group(figures, skins)
    results: dict[str, Any] = {"methods": methods}
    for first, second in PAIRS:
        if {first, second} <= set(means):
            results[f"{first} - {second}"] = {
                name: _known(means[first][name] - means[second][name]) for name in (*SHARES, *ERRORS)
            }
    return results


def _known(values: Array) -> dict[str, float] | None:
    """Estimate the mean over the people to whom a measure applies, or None where it applies to nobody."""
    known = values[~np.isnan(values)]
    return interval(known).record() if len(known) else None


def _by_group(figures: dict[str, Array], skins: Sequence[str]) -> dict[str, Any]:
    groups = np.array([nearest_name("skin", skin) for skin in skins])
    return {
        group: {
            "people": int((groups == group).sum()),
            "error": interval(figures["error_skin"][groups == group]).record(),
            "lightness": interval(figures["lightness_skin"][groups == group]).record(),
        }
        for group in sorted(set(groups.tolist()))
    }
