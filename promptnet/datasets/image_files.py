"""The images of a folder, for commands that take a folder as it is; `promptnet.datasets.prepare` does more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from promptnet.datasets.prepare.sources.base import IMAGE_ENDINGS
from promptnet.datasets.prepare.sources.names import left_out


def image_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """Return the files below a folder that have an image's ending, in order; none if it is no folder.

    Hidden files and folders and those of systems (waste bins, thumbnails) are nobody's images and left out.

    Args:
        folder: to look through.
        deep: look into folders within it too.
    """
    return sorted(_found(folder, deep)) if folder.is_dir() else []


def _found(folder: Path, deep: bool) -> Iterator[Path]:
    for path in folder.iterdir():
        is_folder = path.is_dir()
        if left_out(path.name, is_folder=is_folder):
            continue
        if is_folder and deep and not path.is_symlink():  # a link may lead in a circle
            yield from _found(path, deep)
        elif path.is_file() and path.suffix.lower() in IMAGE_ENDINGS:
            yield path
