"""Webdataset shards: tar files in which the members of one name and different endings are one sample.

Which these are, `promptnet.datasets.prepare.sources.samples` says.

Only images, texts and JSON are read, and only where they are asked for. Nothing is unpacked or unpickled.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from promptnet.datasets.prepare.sources.base import IMAGE_ENDINGS, Columns, Entry, Raw, Refused, printable
from promptnet.datasets.prepare.sources.endings import ending_of
from promptnet.datasets.prepare.sources.names import left_out, left_out_of_path
from promptnet.datasets.prepare.sources.samples import Sample, samples_of
from promptnet.datasets.prepare.sources.texts import bad_text, decoded, json_field, tidied

_PICKLED = (".pth", ".pt", ".pkl", ".pickle", ".pyd")
_MAX_TEXT_BYTES = 1024 * 1024
_MAX_IMAGE_BYTES = 128 * 1024 * 1024  # less than of a file, whose header is read before the rest
_BLOCK = 512


class Span(NamedTuple):
    """Where a member's content lies in its tar file."""

    start: int
    num_bytes: int


class Place(NamedTuple):
    """Where a sample's parts lie."""

    shard: int
    image: Span
    identity: Span | None
    caption: Span | None


def find_shards(path: Path) -> list[Path]:
    """The tar file itself, or those of a folder that holds tar files and neither images nor folders.

    What is hidden or the system's own does not count.

    Raises:
        ValueError: the file is a compressed tar.
    """
    if path.is_file():
        if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
            raise ValueError(
                f"shard '{path}' is compressed, so its images cannot be reached one by one: unpack it first"
            )
        return [path] if path.suffix.lower() == ".tar" else []
    if not path.is_dir():
        return []
    found = [item for item in path.iterdir() if not left_out(item.name, is_folder=item.is_dir())]
    if any(item.is_dir() or item.suffix.lower() in IMAGE_ENDINGS for item in found):
        return []
    return sorted((item for item in found if item.suffix.lower() == ".tar"), key=os.fsencode)


@dataclass(frozen=True)
class ShardSource:
    """The samples of tar shards.

    Args:
        shards: the tar files.
        columns: `identity` and `caption` name an ending ("cls", "txt") or a field of a JSON member ("json.person").
        prefix: of the entries' names.
    """

    shards: list[Path]
    columns: Columns
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.columns.identity in ("folder", "parent"):
            raise ValueError(
                f"identity={self.columns.identity!r} does not go with tar shards: name an ending such as cls, a field "
                "of a JSON member such as json.person, or none"
            )

    def entries(self) -> list[Entry]:
        """See `Source`."""
        return [entry for number in range(len(self.shards)) for entry in self._entries_of(number)]

    def read(self, entry: Entry) -> Raw:
        """See `Source`."""
        place: Place = entry.place
        if place.image.num_bytes > _MAX_IMAGE_BYTES:
            raise Refused("file too large", f"has more than {_MAX_IMAGE_BYTES // 2**20} MiB: save a smaller copy")
        try:
            with self.shards[place.shard].open("rb") as file:
                identity = self._text(file, place.identity, self._identity_column)
                caption = self._text(file, place.caption, self.columns.caption, entry.caption)
                return Raw(_content(file, place.image), identity, caption)
        except OSError as error:
            raise Refused("unreadable", f"cannot be read from its shard ({error.strerror or error})") from error

    def version(self) -> str:
        """See `Source`."""
        return json.dumps([(str(path), path.stat().st_size) for path in self.shards])

    @property
    def _identity_column(self) -> str | None:
        return None if self.columns.identity == "none" else self.columns.identity

    def _entries_of(self, number: int) -> Iterator[Entry]:
        shard = self.prefix + printable(self.shards[number].name)
        spans: dict[str, Span] = {}
        try:
            for member in _members(self.shards[number]):
                if refusal := left_out_of_path(member.name) or _refusal(member):
                    yield Entry(f"{shard}/{printable(member.name)}", refusal=refusal)
                elif member.isfile():
                    spans[member.name] = Span(member.offset_data, member.size)
        except (tarfile.TarError, OSError, Refused) as error:
            problem = f"is damaged ({error}): what comes after the damage is lost, download it again"
            yield Entry(shard, refusal=("damaged shard", problem))
        for sample in samples_of(spans):
            yield self._entry(f"{shard}/", number, sample, spans)

    def _entry(self, shard: str, number: int, sample: Sample, spans: dict[str, Span]) -> Entry:
        if len(sample.images) != 1:
            return Entry(shard + printable(sample.stem), refusal=_not_one(sample))
        image = sample.images[0]
        identity, caption = (sample.text(ending_of(each)) for each in (self._identity_column, self.columns.caption))
        found = (None if each is None else spans[each] for each in (identity, caption))
        return Entry(
            shard + printable(image),
            Place(number, spans[image], *found),
            caption=caption,
            has_identity=identity is not None,
        )

    def _text(self, file: IO[bytes], span: Span | None, column: str | None, member: str | None = None) -> str | None:
        if span is None or column is None:
            return None
        name = member or f"*.{ending_of(column)}"
        if span.num_bytes > _MAX_TEXT_BYTES:
            raise bad_text(name, f"has {span.num_bytes} bytes, which is no name or caption")
        data = _content(file, span)
        field = column.lstrip(".").partition(".")[2]
        return json_field(data, name, field) if ending_of(column) == "json" else tidied(decoded(data, name))


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar file.

    Raises:
        tarfile.TarError, Refused: it is none, or is damaged; `tarfile` itself is silent about damage further in.
    """
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while member := archive.next():
            yield member
        file.seek(archive.offset)
        if file.read(_BLOCK).strip(b"\0"):
            raise Refused("damaged shard", f"no header at byte {archive.offset}")


def _not_one(sample: Sample) -> tuple[str, str]:
    """Return why a sample of no image or of several is refused."""
    if sample.images:
        names = ", ".join(printable(name) for name in sample.images)
        return "several images", f"is a sample of several images: {names}"
    have = ", ".join(printable(name) for name in sample.others)
    return "not an image", f"is a sample without an image: it has {have}"


def _refusal(member: tarfile.TarInfo) -> tuple[str, str] | None:
    if member.isdir():
        return None
    if not member.isfile() or member.issparse():
        return "not a file", "is a link, a device or a sparse file in a tar shard"
    if member.name.lower().endswith(_PICKLED):
        return "pickle", "is a pickle, which could run any code when read: it is left out"
    return None


def _content(file: IO[bytes], span: Span) -> bytes:
    file.seek(span.start)
    return file.read(span.num_bytes)
