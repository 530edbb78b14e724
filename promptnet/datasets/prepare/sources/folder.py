"""A folder of images, with sub-folders for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from promptnet.datasets.prepare.sources.base import IMAGE_ENDINGS, Columns, Entry, Raw, Refused, printable
from promptnet.datasets.prepare.sources.endings import ending_of, text_beside, texts_by_stem
from promptnet.datasets.prepare.sources.names import left_out
from promptnet.datasets.prepare.sources.texts import bad_text, decoded, tidied
from promptnet.images.load import ImageError, read_file

_IDENTITIES = ("folder", "parent", "none")
_MAX_CAPTION_BYTES = 64 * 1024


@dataclass(frozen=True)
class FolderSource:
    """Every file below a folder, but for hidden ones and the system's; links are followed, except in circles.

    Args:
        root: the folder.
        columns: `identity` is "folder" (default), "parent" or "none"; `caption` is the ending of text files beside the
            images ("txt"), which are then not taken for images themselves; see `source_endings`.
        prefix: of the entries' names.

    Raises:
        ValueError: `identity` is something else.
    """

    root: Path
    columns: Columns
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.columns.identity not in (None, *_IDENTITIES):
            raise ValueError(
                f"identity={self.columns.identity!r} does not go with the folder '{self.root}', which has no columns: "
                f"choose {', '.join(_IDENTITIES)}"
            )

    def entries(self) -> list[Entry]:
        """See `Source`."""
        return list(self._walk(Path(), frozenset([_key(os.stat(self.root))])))

    def read(self, entry: Entry) -> Raw:
        """See `Source`."""
        caption = None if entry.caption is None else self._caption(entry.caption)
        return Raw(self.root / entry.place, self._identity(Path(entry.place)), caption)

    def version(self) -> str:
        """See `Source`."""
        return "folder"

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        try:
            with os.scandir(self.root / folder) as found:
                items = sorted(found, key=lambda item: os.fsencode(item.name))
        except OSError as error:
            yield self._refused(folder, "unreadable", f"is a folder that cannot be listed ({error.strerror})")
            return
        if not items and folder.suffix.lower() in IMAGE_ENDINGS:
            yield self._refused(folder, "folder", "is an empty folder with the name of an image")
        items = [(item, left_out(item.name, is_folder=_is_folder(item))) for item in items]
        names = [item.name for item, reason in items if not reason]
        texts = texts_by_stem(names, ending_of(self.columns.caption))
        captions = {name: text_beside(name, texts) for name in names}
        for item, reason in items:
            inner = folder / item.name
            if reason:
                yield self._refused(inner, *reason)
            elif _is_folder(item):
                yield from self._descend(inner, item, above)
            elif item.name not in captions.values():  # a text alone is a file like any other
                yield self._entry(inner, captions[item.name])

    def _descend(self, folder: Path, item: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        key = _key(item.stat())
        if key in above:
            yield self._refused(folder, "link loop", "is a link to a folder that it lies in")
        else:
            yield from self._walk(folder, above | {key})

    def _entry(self, path: Path, caption: str | None) -> Entry:
        beside = None if caption is None else path.with_name(caption)
        try:
            sizes = tuple(os.stat(self.root / file).st_size for file in (path, beside) if file is not None)
        except OSError:  # reading it will say why
            sizes = ()
        return Entry(self._name(path), str(path), num_bytes=sizes, caption=None if beside is None else str(beside))

    def _name(self, path: Path) -> str:
        return self.prefix + printable(str(path))

    def _refused(self, path: Path, reason: str, problem: str) -> Entry:
        return Entry(self._name(path), refusal=(reason, problem))

    def _identity(self, path: Path) -> str | None:
        kind, folders = self.columns.identity or "folder", path.parts[:-1]
        if kind == "none" or not folders:
            return None
        return printable(folders[0] if kind == "folder" else folders[-1])

    def _caption(self, place: str) -> str | None:
        try:
            return tidied(decoded(read_file(self.root / place, _MAX_CAPTION_BYTES), place))
        except ImageError as error:
            if error.reason == "empty":
                return None
            raise error if isinstance(error, Refused) else bad_text(place, error.problem) from error


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link in a circle
        return False
