"""Report of the evaluation of edits: tables on the console and a contact sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.evaluation.edits.score import METRICS
from promptnet.evaluation.subjects.report import TILE_PX, figure_text, print_checks, wide_console
from promptnet.images.contact_sheet import contact_sheet
from promptnet.io.atomic import write_whole

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {"both": "harmonic mean", "distance": "distance to truth", "pixel_l1": "pixel L1"}


def print_edit_results(results: Mapping[str, Any]) -> None:
    """Print tables of means, edits and fields for each source, then the checks."""
    console = wide_console()
    for source, methods in results["sources"].items():
        console.print(means_table(source, methods))
        console.print(edits_table(source, methods))
        console.print(stays_table(source, methods))
    print_checks(results["claims"], console)


def means_table(source: str, methods: Mapping[str, Any]) -> "Table":
    """Return the table of every method's metrics, averaged over its edits."""
    from rich.table import Table

    metrics = [name for name in METRICS if any(name in method["mean"] for method in methods.values())]
    table = Table(title=f"edits of {source}", caption="mean over edits, 95 % bootstrap interval over images")
    table.add_column("method")
    for metric in metrics:
        table.add_column(HEADINGS.get(metric, metric), justify="right")
    for name, method in methods.items():
        label = f"{name} ({len(method['edits'])} edits)" if "" not in method["edits"] else name
        table.add_row(label, *(figure_text(method["mean"][m]) if m in method["mean"] else "" for m in metrics))
    return table


def edits_table(source: str, methods: Mapping[str, Any]) -> "Table":
    """Return the table of edit success, preservation and their harmonic mean, edit by edit."""
    from rich.table import Table

    names = list(dict.fromkeys(name for method in methods.values() for name in method["edits"] if name))
    table = Table(title=f"edits of {source}: change, kept, harmonic mean")
    table.add_column("method")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for name, method in methods.items():
        table.add_row(name, *(_three(method["edits"].get(edit)) for edit in names))
    return table


def stays_table(source: str, methods: Mapping[str, Any]) -> "Table":
    """Return the table of how often each field is preserved under the edits of other fields."""
    from rich.table import Table

    fields = list(dict.fromkeys(field for method in methods.values() for field in method["stays"]))
    table = Table(
        title=f"edits of {source}: how often each field stays",
        caption="mean over the edits of other fields, and half of the 95 % bootstrap interval over images",
    )
    table.add_column("field")
    for name in methods:
        table.add_column(name, justify="right")
    for field in fields:
        table.add_row(field, *(_give_or_take(method["stays"].get(field)) for method in methods.values()))
    return table


def _give_or_take(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{figure['mean']:.2f} ± {(figure['high'] - figure['low']) / 2:.2f}"


def _three(record: Mapping[str, Any] | None) -> str:
    if record is None or "both" not in record:
        return ""
    return " ".join(f"{record[name]['mean']:.2f}" for name in ("change", "kept", "both"))


def save_edit_sheet(
    path: Path,
    methods: Sequence[str],
    lines: Sequence[tuple[str, Mapping[str, Image.Image | None]]],
) -> None:
    """Write the sheet: a line for each edit and source with the unedited image, every method's, and the truth."""
    headings = ["unedited", *methods, "truth"]
    tiles = [(text, [images.get(name) for name in headings]) for text, images in lines]
    write_whole(path, contact_sheet(tiles, headings, tile_px=TILE_PX).save, public=True)
