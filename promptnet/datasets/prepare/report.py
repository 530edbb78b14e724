"""A prepared data set on disk: parquet shards that Hugging Face `datasets` opens, and a report with their hashes.

The report is written last, so a folder with a report is whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_FOLDER = "data"
REPORT = "report.json"
UNFINISHED = ".preparing"  # hidden, so that nobody takes parts for a data set

# Column -> its type as `datasets` names it. Pixels count from the upper left corner of the upright source image.
FEATURES: dict[str, dict[str, Any]] = {
    "image": {"_type": "Image"},
    "identity": {"dtype": "string", "_type": "Value"},  # null: not known
    "caption": {"dtype": "string", "_type": "Value"},  # null: none
    # left, top, right, bottom of the face, or with no detector of the part that was taken
    "box": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
    # five points (x, y): eyes, nose, corners of the mouth; null without a detector
    "landmarks": {
        "feature": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
        "_type": "List",
    },
    # middle x, middle y, side, degrees clockwise of the square that was taken; null without a detector
    "crop": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
    "score": {"dtype": "float32", "_type": "Value"},  # of the detector; null without one
    "sharpness": {"dtype": "float32", "_type": "Value"},
    "source": {"dtype": "string", "_type": "Value"},  # name of the image in its source
    "source_hash": {"dtype": "string", "_type": "Value"},  # SHA-256 of its file
    "pixel_hash": {"dtype": "string", "_type": "Value"},  # SHA-256 of its pixels, upright
}


def schema() -> pa.Schema:
    """The shards' columns, with what tells `datasets` that `image` holds images."""
    import pyarrow as pa

    text, number = pa.string(), pa.float32()
    types = {
        "image": pa.struct({"bytes": pa.binary(), "path": text}),
        "box": pa.list_(number),
        "landmarks": pa.list_(pa.list_(number)),
        "crop": pa.list_(number),
        "score": number,
        "sharpness": number,
    }
    about = json.dumps({"info": {"features": FEATURES}})
    return pa.schema([(name, types.get(name, text)) for name in FEATURES], metadata={"huggingface": about})


def read_report(folder: str | Path) -> dict[str, Any]:
    """The report of a finished data set.

    Raises:
        ValueError: `folder` holds none, or a shard is missing or has another size than the report says.
    """
    folder = Path(folder)
    path = folder / REPORT
    if not path.is_file():
        raise ValueError(
            f"'{folder}' is no finished data set: prepare one, or repeat the `promptnet prepare` that made it"
        )
    try:
        report = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged ({error}): copy the data set again, or prepare it again") from error
    for shard in report["shards"]:
        file = folder / SHARD_FOLDER / shard["file"]
        if not file.is_file() or file.stat().st_size != shard["num_bytes"]:
            raise ValueError(f"'{file}' is missing or cut short: copy the data set again, or prepare it again")
    return report


def load_prepared(folder: str | Path, **options: Any) -> Any:
    """A prepared data set as a Hugging Face `Dataset` (or with `streaming=True` an `IterableDataset`).

    Without `streaming`, `datasets` copies the images into its cache: pass a `cache_dir` as private as the folder.

    Args:
        folder: what `promptnet prepare` wrote.
        options: of `datasets.load_dataset`.

    Raises:
        ValueError: see `read_report`.
    """
    import datasets

    report = read_report(folder)
    shards = [str(Path(folder) / SHARD_FOLDER / shard["file"]) for shard in report["shards"]]
    return datasets.load_dataset("parquet", data_files={"train": shards}, split="train", **options)
