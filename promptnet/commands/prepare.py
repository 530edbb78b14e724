"""`promptnet prepare`: turn photographs into a data set of faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from promptnet.commands._checks import check_counts, check_numbers
from promptnet.io.atomic import check_folder
from promptnet.io.progress import measuring_bar


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
        detector: mtcnn finds and aligns faces; none takes the centre of images that are already cropped
        faces: which of the faces above the size and score limits; exactly-one rejects images with more or fewer
        size: side of the images to write, in pixels
        margin: space around a face on each side, as a fraction of the face
        keep_aspect: with --detector none, keep the whole image, with its shorter side equal to --size
        min_face_px: smallest face (with --detector none: shorter side of an image) to accept (null: a quarter of size)
        min_score: smallest detector score to accept, 0 to 1
        min_inside: fraction of a face's square that must lie in the image; the rest is mirrored
        min_sharpness: smallest variance of the crop's Laplacian to accept; the report holds its distribution
        max_megapixels: of a source image
        identity: source of the person's name: folder (the source's sub-folder), parent (the folder it lies in), none, a
            column, an ending (cls) or a JSON field (json.person) (null: folder for folders, else none)
        image_column: of a Hugging Face data set
        caption_column: a column, an ending (txt; in folders, of files beside the images) or a JSON field (null: none)
        split: of a Hugging Face data set
        encoding: of the images to write; png is lossless, jpeg (quality 95) takes a quarter of the space
        part_size: images in a shard; an interrupted shard is repeated
        workers: number of processes (null: one a core)
    """
    import os

    from promptnet.datasets.prepare.options import PrepareOptions

    check_counts(workers=workers)
    check_numbers(1e-6, None, max_megapixels=max_megapixels)

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
    check_folder(out)
    from promptnet.datasets.prepare.run import prepare_images
    from promptnet.datasets.prepare.sources.base import Columns

    columns = Columns(identity=identity, image=image_column, caption=caption_column, split=split)
    with measuring_bar("preparing") as progress:
        prepared = prepare_images(
            source, out, options, columns, workers=workers or len(os.sched_getaffinity(0)), progress=progress
        )
    if prepared.was_finished:
        print(f"{out} was finished already")
    _print(prepared.report)
    print(out / "report.json")
    if not prepared.report["rows"]:
        raise ValueError(f"no image was accepted: '{out / 'report.json'}' says why for each")


def _print(report: dict[str, Any]) -> None:
    """Print counts, and nothing about any image: their names are in the report, which is private."""
    from rich.console import Console
    from rich.table import Table

    table = Table("images", "number", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("in the sources", str(report["pictures"]))
    table.add_row("accepted", str(report["accepted"]))
    for reason, number in report["rejected"].items():
        table.add_row(f"rejected: {reason}", str(number))
    for reason, number in report.get("left_out", {}).items():  # reports of earlier versions have none
        table.add_row(f"left out: {reason} files and folders", str(number))
    table.add_row("records written", str(report["rows"]))
    table.add_row("people known by name", str(report["identities"]))
    if report["plan"]["columns"]["caption"] is not None:
        table.add_row("records with a caption", str(report.get("captions", "not counted")))
    Console().print(table)
