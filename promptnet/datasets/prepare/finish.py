"""The parts become the data set: duplicates dropped, shards in place, the report written last.

It can be cut off anywhere and begun anew: parts are only read, and the folder of shards appears with one rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.datasets.prepare.parts import Part, PartRecord, Refusal, parquet, read_record
from promptnet.datasets.prepare.report import SHARD_FOLDER
from promptnet.io.atomic import sync_folder, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

_FACTS = ["source", "source_hash", "pixel_hash", "identity", "caption", "score", "sharpness", "box"]


@dataclass(frozen=True)
class Shard:
    """One file of the data set."""

    file: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass
class Outcome:
    """What came out.

    Attributes:
        num_images: that the sources hold.
        num_accepted: of those, each with a row or more.
        shards: the files.
        refusals: of the others, in the sources' order within each part; duplicates come last.
        identities: that are known.
        num_captions: rows with a caption.
        scores: of each row, without those of no detector.
        sharpness: of each row.
        face_px: longer side of each row's box.
    """

    num_images: int = 0
    num_accepted: int = 0
    shards: list[Shard] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    identities: set[str] = field(default_factory=set)
    num_captions: int = 0
    scores: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    face_px: list[float] = field(default_factory=list)


def finish(parts: Sequence[Part], made: Path, out: Path) -> Outcome:
    """Put the shards of finished parts into `out`; what was there before is replaced.

    Raises:
        OSError: the disk is full; the parts stay as they are.
    """
    outcome, seen = Outcome(), {}
    new = made / SHARD_FOLDER
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    for part in parts:
        record = read_record(part, made)
        assert record is not None, f"part {part.number} is not done"
        _add(part, record, made, new, outcome, seen)
    sync_folder(new)
    shutil.rmtree(out / SHARD_FOLDER, ignore_errors=True)
    os.replace(new, out / SHARD_FOLDER)
    sync_folder(out)
    return outcome


def _add(
    part: Part, record: PartRecord, made: Path, new: Path, outcome: Outcome, seen: dict[str, tuple[str, str]]
) -> None:
    outcome.num_images += record.num_images
    outcome.refusals += record.refusals
    if not record.num_rows:
        return
    import pyarrow.parquet as pq

    facts = pq.ParquetFile(made / part.file_name).read(_FACTS)
    kept, duplicates = _without_duplicates(facts, seen)
    outcome.refusals += duplicates
    if kept:
        _count(facts.take(kept), outcome)
        whole = len(kept) == record.num_rows
        outcome.shards.append(_place(part, made, new, None if whole else kept, len(kept)))


def _without_duplicates(facts: pa.Table, seen: dict[str, tuple[str, str]]) -> tuple[list[int], list[Refusal]]:
    """Rows of images that nobody has seen before, and a refusal for each of the other images.

    `seen` is pixel hash -> name and file hash of the first image that has it. Files that are equal have equal pixels.
    """
    kept, duplicates = [], []
    columns = (facts[name].to_pylist() for name in ("source", "source_hash", "pixel_hash"))
    for row, (source, file_hash, pixel_hash) in enumerate(zip(*columns, strict=True)):
        first, first_hash = seen.setdefault(pixel_hash, (source, file_hash))
        if first == source:
            kept.append(row)
        elif not (duplicates and duplicates[-1].source == source):  # one image may have several rows
            same = "file" if file_hash == first_hash else "pixels"
            duplicates.append(Refusal(source, "duplicate", f"has the same {same} as '{first}'"))
    return kept, duplicates


def _count(facts: pa.Table, outcome: Outcome) -> None:
    outcome.num_accepted += len(set(facts["source"].to_pylist()))
    outcome.identities |= set(facts["identity"].to_pylist()) - {None}
    outcome.num_captions += len(facts["caption"]) - facts["caption"].null_count
    outcome.scores += [score for score in facts["score"].to_pylist() if score is not None]
    outcome.sharpness += facts["sharpness"].to_pylist()
    outcome.face_px += [max(box[2] - box[0], box[3] - box[1]) for box in facts["box"].to_pylist()]


def _place(part: Part, made: Path, new: Path, kept: list[int] | None, num_rows: int) -> Shard:
    """The part's file itself under a second name, or, where rows are left out, a new one."""
    path = new / part.file_name
    if kept is None:
        _link(made / part.file_name, path)
    else:
        import pyarrow.parquet as pq

        write_whole(path, parquet(pq.ParquetFile(made / part.file_name).read().take(kept)))
    with path.open("rb") as file:
        return Shard(part.file_name, num_rows, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        write_whole(target, source.read_bytes())


def percentiles(values: list[float]) -> dict[str, float] | None:
    """What users choose thresholds by; None without values."""
    import numpy as np

    if not values:
        return None
    names: Iterator[Any] = zip(
        ("p1", "p10", "p50", "p90", "p99"), np.percentile(values, (1, 10, 50, 90, 99)), strict=True
    )
    return {name: round(float(value), 4) for name, value in names}
