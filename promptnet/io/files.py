"""Where evaluations write: folders that exist, files that appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def check_folder(out: str | Path) -> Path:
    """Return the output folder.

    Raises:
        ValueError: it does not exist or is a file.
    """
    folder = Path(out)
    if not folder.is_dir():
        raise ValueError(f"output folder '{folder}' does not exist: create it first (mkdir -p '{folder}')")
    return folder


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers never see half a file."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    write_whole(path, lambda part: part.write_text(text, "utf-8"))
