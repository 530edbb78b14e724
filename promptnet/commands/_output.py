"""Check names of output files and sizes on the command line before any work."""

from __future__ import annotations

import re
from pathlib import Path

from promptnet.io.atomic import check_folder

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(path: Path, suffixes: tuple[str, ...], *, overwrite: bool = True) -> None:
    """Check the name and folder of an output file; a missing folder will be made, those above it not.

    Raises:
        ValueError: the name does not end in one of `suffixes`, it is a folder, its folder cannot be made, or it
            exists and is not to be overwritten.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"output '{path}' must end in {' or '.join(suffixes)}")
    check_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"output '{path}' is a folder")
    if path.exists() and not overwrite:
        raise ValueError(f"output '{path}' exists already: choose another name, or give --overwrite")


def numbered(path: Path, count: int) -> list[Path]:
    """Return `out.png` itself for one image, `out-1.png`, `out-2.png`, ... for several."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def parse_size(size: str) -> tuple[int, int]:
    """Parse `"512x768"` as (width, height) in pixels.

    Raises:
        ValueError: the text is not two positive whole numbers with an x between them.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})", size.strip())
    if not match:
        raise ValueError(f"size '{size}' is not WIDTHxHEIGHT in pixels, for example 64x64")
    return int(match[1]), int(match[2])
