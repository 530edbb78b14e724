"""Folders that are either whole or absent."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder and have it appear under its name at once, complete and on disk.

    The block writes into a hidden folder beside the target, which is renamed when the block ends and removed when it
    fails.

    Raises:
        ValueError: something has that name already, or the folder to put it in does not exist.
    """
    if target.exists():
        raise ValueError(f"{target} exists already. Choose another name or remove it first.")
    if not target.parent.is_dir():
        raise ValueError(f"The folder {target.parent} does not exist. Create it first.")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        yield part
        for path in [*part.rglob("*"), part]:
            _sync(path)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's list of names, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
