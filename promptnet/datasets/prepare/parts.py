"""Parts: pieces of the work that are done or not done, whatever happens in between.

A part's rows go into one parquet file and what was refused into a JSON file, which is written last and says that the
part is done. Both appear whole or not at all. What a part holds depends on its entries and the options alone, not on
who made it when, so killing and repeating changes no byte of the outcome.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from promptnet.datasets.prepare.image import Detect, rows_of
from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.report import schema
from promptnet.datasets.prepare.sources.base import Entry, Refused, Source
from promptnet.images.load import ImageError
from promptnet.io.atomic import write_whole

_ROWS_A_GROUP = 64


@dataclass(frozen=True)
class Part:
    """Some entries, each with the number of its source."""

    number: int
    entries: tuple[tuple[int, Entry], ...]

    @property
    def file_name(self) -> str:
        """Of the rows."""
        return f"part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class Refusal:
    """An image that was left out: its name, the reason in a word or two, the problem in a sentence."""

    source: str
    reason: str
    problem: str


@dataclass(frozen=True)
class PartRecord:
    """What is known of a part that is done.

    Attributes:
        num_images: that were looked at.
        num_rows: that came out.
        num_bytes: of the rows' file, 0 if there is none.
        refusals: of the others.
    """

    num_images: int
    num_rows: int
    num_bytes: int
    refusals: list[Refusal]


def split(entries: Sequence[tuple[int, Entry]], part_size: int) -> list[Part]:
    """All entries in parts of equal size; the last may be smaller."""
    starts = range(0, len(entries), part_size)
    return [Part(number, tuple(entries[start : start + part_size])) for number, start in enumerate(starts)]


def make_part(
    part: Part,
    sources: Sequence[Source],
    options: PrepareOptions,
    folder: Path,
    detect: Detect | None,
    tick: Callable[[], None],
) -> None:
    """Read, prepare and write the images of one part; `tick` is called after each.

    Raises:
        OSError: the disk is full or the folder gone; then the part is not done.
    """
    rows: list[dict[str, Any]] = []
    refusals: list[Refusal] = []
    for number, entry in part.entries:
        try:
            rows += _rows(sources[number], entry, options, detect)
        except ImageError as error:
            refusals.append(Refusal(entry.name, error.reason, error.problem))
        tick()
    data = parquet(rows) if rows else b""
    if rows:
        write_whole(folder / part.file_name, data)
    record = PartRecord(len(part.entries), len(rows), len(data), refusals)
    write_whole(_record_path(part, folder), json.dumps(record, default=vars).encode())


def _rows(source: Source, entry: Entry, options: PrepareOptions, detect: Detect | None) -> list[dict[str, Any]]:
    if entry.refusal is not None:
        raise Refused(*entry.refusal)
    return rows_of(source.read(entry), entry.name, options, detect)


def parquet(rows: Any) -> bytes:
    """A shard's file. Images are compressed already; small row groups let readers skip.

    Args:
        rows: dictionaries, or an Arrow table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema())
    file = BytesIO()
    pq.write_table(table, file, row_group_size=_ROWS_A_GROUP, compression="none", use_dictionary=False)
    return file.getvalue()


def _record_path(part: Part, folder: Path) -> Path:
    return (folder / part.file_name).with_suffix(".json")


def read_record(part: Part, folder: Path) -> PartRecord | None:
    """What is known of a part; None if it is not done, or its rows are not all there."""
    try:
        known = json.loads(_record_path(part, folder).read_text("utf-8"))
        record = PartRecord(**(known | {"refusals": [Refusal(**refusal) for refusal in known["refusals"]]}))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    rows = folder / part.file_name
    num_bytes = rows.stat().st_size if rows.is_file() else 0
    return record if (num_bytes, len(part.entries)) == (record.num_bytes, record.num_images) else None
