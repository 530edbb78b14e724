"""Report of the comparison: tables on the console and a contact sheet."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.evaluation.harness.tasks import Person
from promptnet.evaluation.subjects.exact_report import print_exact
from promptnet.evaluation.subjects.results import Results
from promptnet.evaluation.subjects.score import METRICS
from promptnet.images.contact_sheet import contact_sheet
from promptnet.io.atomic import write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = {"harmonic": "harmonic mean", "distance": "distance to truth", "pixel_l1": "pixel L1"}


def print_results(results: Results, console: "Console | None" = None) -> None:
    """Print the methods, their fields and the checks as tables."""
    console = console or wide_console()
    console.print(methods_table(results))
    console.print(fields_table(results))
    print_exact(results["exact"], console)
    print_checks(results["claims"], console)


def wide_console() -> "Console":
    """Return a console that is wide enough for every figure if the output is no terminal (a pipe, a log)."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def print_checks(checks: Mapping[str, Any], console: "Console") -> None:
    """Print every check with whether it holds, and its figures."""
    for check in checks.values():
        console.print(
            f"[{'green' if check['holds'] else 'red'}]{'yes' if check['holds'] else 'no ':3}[/] {check['statement']}"
        )
        for name, figure in check["figures"].items():
            console.print(f"      {name}: {figure_text(figure)}", highlight=False)


def methods_table(results: Results) -> "Table":
    """Return the table of every method with its metrics and intervals."""
    from rich.table import Table

    settings = results["settings"]
    title = f"{settings['people']} {settings['split']} people, {settings['prompts']} prompts, {settings['steps']} steps"
    title += "".join(f", {name} {settings[name]}" for name in ("world", "frame") if name in settings)
    table = Table(title=title, caption="mean, 95 % bootstrap interval over people")
    table.add_column("method", overflow="fold")
    for metric in METRICS:
        table.add_column(HEADINGS.get(metric, metric), justify="right")
    for name, method in results["rows"].items():
        table.add_row(name, *(figure_text(method[metric]) for metric in METRICS))
    return table


def fields_table(results: Results) -> "Table":
    """Return the table of the judge's raw accuracy, field by field."""
    from rich.table import Table

    fields = list(dict.fromkeys(field for method in results["fields"].values() for field in method))
    table = Table(title="fraction of images in which the judge predicts the field right")
    table.add_column("method", overflow="fold")
    for field in fields:
        table.add_column(field, justify="right", overflow="fold")
    for name, method in results["fields"].items():
        table.add_row(name, *(f"{method[field]:.2f}" if field in method else "" for field in fields))
    return table


def figure_text(figure: Mapping[str, float]) -> str:
    """Return a mean and its interval as text."""
    return f"{figure['mean']:.3f} [dim]({figure['low']:.3f}, {figure['high']:.3f})[/]"


TILE_PX = 112


def save_sheet(
    path: Path,
    people: Sequence[Person],
    references: Sequence[Image.Image],
    columns: Mapping[str, Sequence[Sequence[Image.Image]]],
    truths: Sequence[Sequence[Image.Image]],
    *,
    max_lines: int = 24,
) -> None:
    """Write the contact sheet: a line a prompt with the reference, every method's image, and the truth.

    Args:
        path: of the PNG.
        people: one line each, with one of their prompts in turn.
        references: (P,) the reference images.
        columns: method name to its images, [person][prompt].
        truths: the real re-renderings, [person][prompt].
        max_lines: people shown.
    """
    lines = []
    for index, person in enumerate(people[:max_lines]):
        eval_prompt = index % len(person.eval_prompts)
        tiles = [
            references[index],
            *(images[index][eval_prompt] for images in columns.values()),
            truths[index][eval_prompt],
        ]
        lines.append((person.eval_prompts[eval_prompt].prompt, tiles))
    sheet = contact_sheet(lines, ["reference", *columns, "truth"], tile_px=TILE_PX)
    write_whole(path, sheet.save, public=True)
