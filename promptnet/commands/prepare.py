"""`promptnet prepare`: photographs in, a data set of faces out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal


def prepare(
    source: list[str],
    out: Path,
    detector: Literal["mtcnn", "none"] = "mtcnn",
    faces: Literal["largest", "all", "exactly-one"] = "largest",
    size: int = 512,
    margin: float = 0.5,
    keep_aspect: bool = False,
    min_face_px: int | None = None,
    min_score: float = 0.95,
    min_inside: float = 0.5,
    min_sharpness: float = 0.0,
    max_megapixels: float = 64.0,
    identity: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    split: str = "train",
    encoding: Literal["png", "jpeg"] = "png",
    part_size: int = 256,
    workers: int | None = None,
) -> None:
    """Find, check, align and crop faces, and write them as a Hugging Face data set with a report; repeat to resume.

    Args:
        source: a folder of images, tar shards (webdataset) or a folder of such, or a Hugging Face data set
        out: the folder to make, outside the source; its parent must exist. Keep it as private as the photographs
        detector: mtcnn finds and aligns faces; none takes the middle of images that are cropped already
        faces: which of the faces that are large and sure enough; exactly-one refuses images of more or fewer
        size: side of the images to write, in pixels
        margin: space around a face on each side, as a share of the face
        keep_aspect: with --detector none, keep the whole image, its shorter side as --size says
        min_face_px: smallest face (with --detector none: shorter side of an image) to accept (null: a quarter of size)
        min_score: how sure the detector must be, 0 to 1
        min_inside: share of a face's square that must lie in the image; what does not is mirrored
        min_sharpness: least variance of the outcome's Laplacian; the report says how it is spread
        max_megapixels: of a source image
        identity: who is in an image: folder (the source's sub-folder), parent (the folder it lies in), none, a column,
            an ending (cls) or a JSON field (json.person) (null: folder for folders, else none)
        image_column: of a Hugging Face data set
        caption_column: a column, an ending (txt; in folders, of files beside the images) or a JSON field (null: none)
        split: of a Hugging Face data set
        encoding: of the images to write; png loses nothing, jpeg (quality 95) is a quarter of it
        part_size: images to a shard, which is also what is done again after an interruption
        workers: processes (null: one a core)
    """
    import os

    from promptnet.datasets.prepare.options import PrepareOptions
    from promptnet.datasets.prepare.run import prepare_images
    from promptnet.datasets.prepare.sources.base import Columns

    options = PrepareOptions(
        detector=detector,
        faces=faces,
        margin=margin,
        size_px=size,
        keep_aspect=keep_aspect,
        min_face_px=min_face_px,
        min_score=min_score,
        min_inside=min_inside,
        min_sharpness=min_sharpness,
        max_pixels=round(max_megapixels * 1e6),
        encoding=encoding,
        part_size=part_size,
    )
    columns = Columns(identity=identity, image=image_column, caption=caption_column, split=split)
    with _bar("preparing") as progress:
        prepared = prepare_images(
            source, out, options, columns, workers=workers or len(os.sched_getaffinity(0)), progress=progress
        )
    if prepared.was_finished:
        print(f"{out} was finished already")
    _print(prepared.report)
    print(out / "report.json")
    if not prepared.report["rows"]:
        raise ValueError(f"no image was accepted: '{out / 'report.json'}' says why for each")


@contextmanager
def _bar(message: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with what is left; yields what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(message, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(report: dict[str, Any]) -> None:
    """Counts, and nothing about any image: their names are in the report, which is private."""
    from rich.console import Console
    from rich.table import Table

    table = Table("pictures", "number", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("in the sources", str(report["pictures"]))
    table.add_row("accepted", str(report["accepted"]))
    for reason, number in report["rejected"].items():
        table.add_row(f"rejected: {reason}", str(number))
    for reason, number in report.get("left_out", {}).items():  # reports of earlier versions have none
        table.add_row(f"left out: {reason} files and folders", str(number))
    table.add_row("rows written", str(report["rows"]))
    table.add_row("people known by name", str(report["identities"]))
    if report["plan"]["columns"]["caption"] is not None:
        table.add_row("rows with a caption", str(report.get("captions", "not counted")))
    Console().print(table)
