"""Report of the evaluation at other sizes: tables on the console and a contact sheet per size."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.evaluation.resolution.score import DISTANCES, FRACTIONS
from promptnet.images.contact_sheet import contact_sheet
from promptnet.io.atomic import write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = {"kid_r": "KID r", "kid_b": "KID b", "one_head": "one head"}
SMALLEST_TILE_PX = 96


def print_sizes(results: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a table a size, then the checks of `auto`."""
    from rich.console import Console

    console = console or (Console() if sys.stdout.isatty() else Console(width=160))
    for name, size in results["sizes"].items():
        console.print(size_table(name, size, results["settings"]["steps"]))
    for check in results["claims"]:
        color, answer = ("green", "yes") if check["holds"] else ("red", "no ")
        console.print(f"[{color}]{answer}[/] {check['says']}")
        for name, figure in check["figures"].items():
            console.print(f"      {name}: {_figure(figure)}", highlight=False)


def size_table(name: str, size: Mapping[str, Any], steps: int) -> "Table":
    """Return the table of one size."""
    from rich.table import Table

    title = f"{name}, {size['pictures']} images, {steps} steps"
    caption = "r: real renders at that size, b: own images at the trained size; 95 % bootstrap intervals over prompts"
    table = Table(title=title, caption=caption)
    table.add_column("method", overflow="fold")
    for measure in (*DISTANCES, *FRACTIONS, "heads"):
        table.add_column(HEADINGS.get(measure, measure), justify="right")
    for method, record in size["rows"].items():
        figures = (_figure(record[measure]) for measure in (*DISTANCES, *FRACTIONS))
        table.add_row(method, *figures, f"{record['heads']:.2f}")
    return table


def _figure(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} [dim]({figure['low']:.3f}, {figure['high']:.3f})[/]"


def save_size_sheet(
    path: Path, columns: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str], *, max_lines: int = 16
) -> None:
    """Write a contact sheet: a line a prompt, a column a method, each image in its own size.

    Images of less than 96 px are enlarged by a whole number, without smoothing.

    Args:
        path: of the PNG.
        columns: heading to its images, prompt by prompt.
        prompts: of the lines.
        max_lines: prompts shown.
    """
    lines = [
        (prompt, [_enlarged(images[line]) for images in columns.values()])
        for line, prompt in enumerate(prompts[:max_lines])
    ]
    write_whole(path, contact_sheet(lines, list(columns)).save, public=True)


def _enlarged(image: Image.Image) -> Image.Image:
    times = max(1, -(-SMALLEST_TILE_PX // image.height))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
