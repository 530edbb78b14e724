"""Markdown of the papers' tables: our figures beside the published ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def interval_cell(found: Mapping[str, Any]) -> str:
    """Return a mean with its interval, and the published figure if there is one."""
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f}){_published(found.get('published'), 3)}"


def number_cell(found: float, published: float | None = None, digits: int = 3) -> str:
    """Return a figure, and the published one if there is one."""
    return f"{found:.{digits}f}{_published(published, digits)}"


def _published(figure: float | None, digits: int) -> str:
    return "" if figure is None else f"; {figure:.{digits}f}"
