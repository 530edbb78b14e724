"""What makes a checkpoint whole: a list of its files with sizes and hashes, written last, under a name given last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
DRAFT = ".draft"  # ends the hidden name of what is being written or removed


class DamagedError(ValueError):
    """A checkpoint is not what was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's folder holds.

    Args:
        number: counts the checkpoints of a run, so that the newest is known without trusting any clock.
        step: optimiser steps behind it.
        files: path below the folder -> {"bytes": size, "sha256": hash}.
    """

    number: int
    step: int
    files: dict[str, dict[str, Any]]

    @property
    def num_bytes(self) -> int:
        """Size of everything listed."""
        return sum(record["bytes"] for record in self.files.values())


def seal(draft: Path, final: Path, *, number: int, step: int) -> None:
    """Flush a written draft, add its manifest, and only then give it its name.

    Args:
        draft: folder beside `final`, completely written.
        final: the checkpoint's name. A folder of that name is replaced.
        number: see `Manifest`.
        step: see `Manifest`.

    Raises:
        OSError: the disk is full or broken; `final` is untouched.
    """
    paths = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in paths:
        _sync(path)
    manifest = Manifest(number, step, {path.relative_to(draft).as_posix(): _describe(path) for path in paths})
    _write_manifest(draft / MANIFEST, manifest)
    for folder in [draft, *(path for path in draft.rglob("*") if path.is_dir())]:
        _sync(folder)
    replaced = final.with_name(f".{final.name}.replaced{DRAFT}")
    if final.exists():  # a folder cannot be renamed over a full one
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    draft.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: there is none, or it is not what was written.
    """
    try:
        record = json.loads((folder / MANIFEST).read_text("utf-8"))
        stated, manifest = record.pop("sha256"), Manifest(**record)
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its {MANIFEST} cannot be read ({error})") from None
    if stated != _digest(manifest):
        raise DamagedError(f"its {MANIFEST} is not what was written")
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest, if every file it lists is there as it was written.

    Args:
        folder: a checkpoint.

    Raises:
        DamagedError: naming the first file that is missing, cut or changed.
    """
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != record["bytes"]:
            raise DamagedError(f"{name} has {path.stat().st_size:,} bytes where {record['bytes']:,} were written")
        if _sha256(path) != record["sha256"]:
            raise DamagedError(f"{name} has changed since it was written (its sha256 differs)")
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Manifest) -> str:
    """The manifest's hash of itself: a flipped digit in it must not change which checkpoint is the newest."""
    return hashlib.sha256(json.dumps(asdict(manifest), sort_keys=True).encode()).hexdigest()


def _write_manifest(path: Path, manifest: Manifest) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**asdict(manifest), "sha256": _digest(manifest)}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; not every file system lets a folder be flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
