"""Write files and folders atomically: whole under their name, or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Content = bytes | str | Callable[[Path], object]


def write_whole(path: Path, content: Content, *, public: bool = False) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: of the file; an old file is replaced whole.
        content: bytes, text (UTF-8), or a function that fills the file at the path it gets, such as `image.save`.
        public: leave the file's mode to the umask; otherwise only its owner can read it, from the first byte on.

    Raises:
        OSError: the disk is full, or the folder is not writable; an old file is unchanged.
    """
    # PIL and matplotlib choose the format by the ending.
    ending = path.suffix if callable(content) else ""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part{ending}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if public else 0o600))
    try:
        _fill(part, content)
        _sync_file(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Write a new folder atomically: the block fills a hidden folder beside it, which is then renamed.

    The hidden folder is removed if the block fails.

    Raises:
        ValueError: the target exists already, or its parent folder does not exist.
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
            (sync_folder if path.is_dir() else _sync_file)(path)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(target.parent)


def check_folder(out: str | Path) -> Path:
    """Return an output folder that exists or can be made by `make_folder`.

    Raises:
        ValueError: it is a file, the folder above it does not exist, or nobody here may write there.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output folder '{folder}' is a file: name a folder")
    if not folder.is_dir() and not folder.parent.is_dir():
        raise ValueError(
            f"output folder '{folder}' cannot be made, as '{folder.parent}' does not exist: "
            f"create that first (mkdir -p '{folder.parent}')"
        )
    place = folder if folder.is_dir() else folder.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(
            f"output folder '{folder}' cannot be written: choose another, or change who may write '{place}'"
        )
    return folder


def make_folder(out: str | Path) -> Path:
    """Return an output folder, made if it is missing; folders above it must exist.

    Raises:
        ValueError: see `check_folder`.
        OSError: it cannot be made.
    """
    folder = check_folder(out)
    folder.mkdir(exist_ok=True)
    return folder


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that a new name survives a power cut.

    Not every system can open or flush a folder; that is no error.
    """
    with contextlib.suppress(OSError):
        _sync_file(folder)


def _fill(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
