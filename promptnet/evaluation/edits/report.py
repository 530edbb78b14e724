"""The evaluation of edits on the console and as a contact sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.evaluation.edits.score import METRICS
from promptnet.evaluation.subjects.report import contact_sheet, figure_text, print_claims, wide_console
from promptnet.io.files import write_whole

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {"both": "harmonic mean", "distance": "distance to truth", "pixel_l1": "pixel L1"}


def print_edit_results(results: Mapping[str, Any]) -> None:
    """Tables of means, edits and fields for each source, then the claims."""
    console = wide_console()
    for source, rows in results["sources"].items():
        console.print(means_table(source, rows))
        console.print(edits_table(source, rows))
        console.print(stays_table(source, rows))
    print_claims(results["claims"], console)


def means_table(source: str, rows: Mapping[str, Any]) -> "Table":
    """Every row's metrics, averaged over its edits."""
    from rich.table import Table

    metrics = [name for name in METRICS if any(name in row["mean"] for row in rows.values())]
    table = Table(title=f"edits of {source}", caption="mean over edits, 95 % bootstrap interval over pictures")
    table.add_column("row")
    for metric in metrics:
        table.add_column(HEADINGS.get(metric, metric), justify="right")
    for name, row in rows.items():
        label = f"{name} ({len(row['edits'])} edits)" if "" not in row["edits"] else name
        table.add_row(label, *(figure_text(row["mean"][m]) if m in row["mean"] else "" for m in metrics))
    return table


def edits_table(source: str, rows: Mapping[str, Any]) -> "Table":
    """Change, preservation and their harmonic mean, edit by edit."""
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows.values() for name in row["edits"] if name))
    table = Table(title=f"edits of {source}: change, kept, harmonic mean")
    table.add_column("row")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(_three(row["edits"].get(edit)) for edit in names))
    return table


def stays_table(source: str, rows: Mapping[str, Any]) -> "Table":
    """How often each field stays under the edits of other fields, a line a field."""
    from rich.table import Table

    fields = list(dict.fromkeys(field for row in rows.values() for field in row["stays"]))
    table = Table(
        title=f"edits of {source}: how often each field stays",
        caption="mean over the edits of other fields, and half of the 95 % bootstrap interval over pictures",
    )
    table.add_column("field")
    for name in rows:
        table.add_column(name, justify="right")
    for field in fields:
        table.add_row(field, *(_give_or_take(row["stays"].get(field)) for row in rows.values()))
    return table


def _give_or_take(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{figure['mean']:.2f} ± {(figure['high'] - figure['low']) / 2:.2f}"


def _three(record: Mapping[str, Any] | None) -> str:
    if record is None or "both" not in record:
        return ""
    return " ".join(f"{record[name]['mean']:.2f}" for name in ("change", "kept", "both"))


def save_edit_sheet(
    path: Path,
    rows: Sequence[str],
    lines: Sequence[tuple[str, Mapping[str, Image.Image | None]]],
) -> None:
    """A line for each edit and source: the unedited picture, every row's, and the truth where there is one."""
    headings = ["unedited", *rows, "truth"]
    blank = Image.new("RGB", (8, 8), "white")
    tiles = [(text, [pictures.get(name) or blank for name in headings]) for text, pictures in lines]
    write_whole(path, contact_sheet(headings, tiles).save)
