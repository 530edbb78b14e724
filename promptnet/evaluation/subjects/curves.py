"""Trade-off curves: one method with one parameter varied and the others as chosen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from promptnet.evaluation.harness.methods import Method, Parameter
from promptnet.evaluation.subjects.results import method_intervals
from promptnet.evaluation.subjects.score import MethodScores

CURVES: dict[str, tuple[Parameter, ...]] = {
    "pseudo_word_scale": (0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
    "class_scale": (0.0, 1.0, 2.0, 3.0, 5.0),
    "fusion_steps": (0, 1, 2, 3),
}
"""The parameters that trade identity for attributes, and the values shown."""

CURVE_METHODS = ("profusion", "published-profusion")


@dataclass(frozen=True)
class Point:
    """One point of one curve."""

    curve_of: str
    parameter: str
    value: Parameter
    method: Method


def curve_points(methods: Iterable[Method]) -> list[Point]:
    """Return every point to generate, for the methods among these that have curves."""
    return [
        Point(
            method.name,
            parameter,
            value,
            replace(method, name=f"{method.name}, {parameter} {value:g}", config={**method.config, parameter: value}),
        )
        for method in methods
        if method.name in CURVE_METHODS
        for parameter, values in CURVES.items()
        for value in values
    ]


def curve_records(points: Iterable[Point], scores: Mapping[str, MethodScores]) -> dict[str, dict[str, Any]]:
    """Return the curves as `results.json` holds them, each with its points in the order of the parameter."""
    curves: dict[str, dict[str, Any]] = {}
    for point in points:
        new = {"row": point.curve_of, "knob": point.parameter, "points": []}
        curve = curves.setdefault(f"{point.curve_of}/{point.parameter}", new)
        curve["points"].append({"value": point.value, **method_intervals(scores[point.method.name])})
    return curves
