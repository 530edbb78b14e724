"""The comparison on people without end, as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from promptnet.evaluation.subjects.exact import ERRORS, SHARES


def print_people(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a line a measure, errors with their share of the way to the truth; paired differences; skin by group.

    Args:
        results: of `people.evaluate_people`.
        console: where to; None is standard output.
    """
    console = console or Console()
    console.print(_measures(results))
    if any(" - " in name for name in results):
        console.print(_pairs(results))
    console.print(_skins(results))


def _measures(results: Mapping[str, Any]) -> Table:
    told = ", ".join(f"{name} {results['settings'][name]}" for name in ("people", "split", "world", "frame"))
    methods = results["methods"]
    table = Table("measure", *methods, title=told, caption="in brackets: intervals; for errors, the share of the way")
    for name in SHARES:
        table.add_row(name, *(_with_interval(figures[name]) for figures in methods.values()))
    for name in ERRORS:
        cells = (f"{_mean(figures[name])} ({_mean(figures['way'][name])})" for figures in methods.values())
        table.add_row(name, *cells)
    return table


def _pairs(results: Mapping[str, Any]) -> Table:
    pairs = {name: figures for name, figures in results.items() if " - " in name}
    table = Table("difference", *pairs, title="Paired differences over people")
    for measure in (*SHARES, *ERRORS):
        table.add_row(measure, *(_with_interval(figures[measure]) for figures in pairs.values()))
    return table


def _skins(results: Mapping[str, Any]) -> Table:
    table = Table("method", "skin", "people", "CIEDE2000", "lightness", title="Skin by group")
    for method, figures in results["methods"].items():
        for group, of_group in figures["skin"].items():
            numbers = _with_interval(of_group["error"]), _with_interval(of_group["lightness"])
            table.add_row(method, group, str(of_group["people"]), *numbers)
    return table


def _mean(figure: Mapping[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:.2f}"


def _with_interval(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"
