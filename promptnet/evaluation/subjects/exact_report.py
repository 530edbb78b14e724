"""Exact measures as tables: a line a method."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptnet.evaluation.subjects.exact import ERRORS, SHARES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Figure = Mapping[str, float] | None


def print_exact(exact: Mapping[str, Any], console: "Console") -> None:
    """Print measures, paired differences, and skin by group.

    Args:
        exact: as `exact_results.summarise_exact` returns it.
        console: where to.
    """
    console.print(_measures(exact["methods"]))
    if exact["differences"]:
        console.print(_differences(exact["differences"]))
    console.print(_skins(exact["methods"]))


def _measures(methods: Mapping[str, Any]) -> "Table":
    table = _table("method", [*SHARES, *ERRORS], "fields read right, and exact errors (share of the way to the truth)")
    for name, figures in methods.items():
        errors = (f"{_mean(figures[error])} ({_mean(figures['way'][error])})" for error in ERRORS)
        table.add_row(name, *(_mean(figures[share]) for share in SHARES), *errors)
    return table


def _differences(differences: Mapping[str, Any]) -> "Table":
    table = _table("measure", list(differences), "paired differences over people")
    for measure in (*SHARES, *ERRORS):
        table.add_row(measure, *(_with_interval(figures[measure]) for figures in differences.values()))
    return table


def _skins(methods: Mapping[str, Any]) -> "Table":
    groups = next(iter(methods.values()))["skin"]
    headings = [f"{group}, {found['people']} people" for group, found in groups.items()]
    table = _table("method", headings, "skin by group: CIEDE2000, and lightness read minus true")
    for name, figures in methods.items():
        of_groups = figures["skin"].values()
        table.add_row(name, *(f"{_mean(each['error'])}, {_with_interval(each['lightness'])}" for each in of_groups))
    return table


def _table(first: str, headings: list[str], title: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _mean(figure: Figure) -> str:
    return "-" if figure is None else f"{figure['mean']:.2f}"


def _with_interval(figure: Figure) -> str:
    return "-" if figure is None else f"{figure['mean']:.2f} [dim]({figure['low']:.2f}, {figure['high']:.2f})[/]"
