"""Trade-off curves: one row drawn again and again with one knob moved, the others as chosen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from promptnet.evaluation.harness.methods import Knob, Row
from promptnet.evaluation.subjects.results import row_intervals
from promptnet.evaluation.subjects.score import RowScores

CURVES: dict[str, tuple[Knob, ...]] = {
    "pseudo_word_scale": (0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
    "class_scale": (0.0, 1.0, 2.0, 3.0, 5.0),
    "fusion_steps": (0, 1, 2, 3),
}
"""The knobs that trade who somebody is for what is asked, and the values shown."""

CURVE_ROWS = ("profusion", "published-profusion")


@dataclass(frozen=True)
class Point:
    """One point of one curve."""

    curve_of: str
    knob: str
    value: Knob
    row: Row


def curve_points(rows: Iterable[Row]) -> list[Point]:
    """Every point to draw, for the rows among these that have curves."""
    return [
        Point(
            row.name, knob, value, replace(row, name=f"{row.name}, {knob} {value:g}", knobs={**row.knobs, knob: value})
        )
        for row in rows
        if row.name in CURVE_ROWS
        for knob, values in CURVES.items()
        for value in values
    ]


def curve_records(points: Iterable[Point], scores: Mapping[str, RowScores]) -> dict[str, dict[str, Any]]:
    """The curves as `results.json` holds them, each with its points in the order of the knob."""
    curves: dict[str, dict[str, Any]] = {}
    for point in points:
        new = {"row": point.curve_of, "knob": point.knob, "points": []}
        curve = curves.setdefault(f"{point.curve_of}/{point.knob}", new)
        curve["points"].append({"value": point.value, **row_intervals(scores[point.row.name])})
    return curves
