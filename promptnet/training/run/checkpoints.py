"""Checkpoints that are whole or not there, and which of them a run goes on from.

A checkpoint is a folder `checkpoints/step=250.ckpt` with `state.ckpt` (one file, or the folder that a sharding strategy
writes) and a manifest (`promptnet.training.run.manifest`). It is written under a hidden name and gets its own last, so
a process may be killed at any moment. Which one is the newest is noted nowhere: it is found among those that verify.
"""

from __future__ import annotations

import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from promptnet.training.run.manifest import DRAFT, DamagedError, read_manifest, verify

STATE = "state.ckpt"
FOLDER = "checkpoints"


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class RunCheckpointIO(TorchCheckpointIO):
    """Torch files, streamed to the disk, and read as tensors and numbers only: never as pickled code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one file.

        Raises:
            CheckpointError: it could not be written; the message names the path, the room needed and the room there is.
        """
        try:
            torch.save(checkpoint, path)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            raise not_written(Path(path), tensor_bytes(checkpoint), error) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read one file."""
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, whole or not at all."""
        remove(Path(path))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nest of dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(tensor_bytes(item) for item in value.values())
    return sum(tensor_bytes(item) for item in value) if isinstance(value, list | tuple) else 0


def not_written(path: Path, needed_bytes: int, error: Exception) -> CheckpointError:
    """The error for a checkpoint that could not be written at `path`, in words that help."""
    free_bytes = shutil.disk_usage(path.parent if path.parent.exists() else Path.cwd()).free
    return CheckpointError(
        f"cannot write the checkpoint {path}: {error}. It needs about {needed_bytes / 1e6:,.0f} MB, and "
        f"{free_bytes / 1e6:,.0f} MB are free there (a quota or limit may leave less). Make room and repeat the "
        "command: training goes on from the last checkpoint that was written whole."
    )


def draft_of(final: Path) -> Path:
    """Where a checkpoint is written before it gets its name; the same on every rank."""
    return final.with_name(f".{final.name}{DRAFT}")


def remove(path: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that no half of it is ever taken for a damaged one."""
    if not path.exists():
        return
    draft = path.with_name(f".{path.name}.removed{DRAFT}")
    shutil.rmtree(draft, ignore_errors=True)
    path.rename(draft)
    if draft.is_dir():
        shutil.rmtree(draft)
    else:
        draft.unlink()


def sweep(run_dir: str | Path) -> None:
    """Remove what killed processes have left half written. Only for whoever holds the run's lock."""
    for draft in Path(run_dir, FOLDER).glob(f".*{DRAFT}"):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()


def step_of(path: Path) -> int | None:
    """Optimiser steps behind a checkpoint; None where neither manifest nor name says."""
    try:
        return read_manifest(path).step
    except DamagedError:
        named = re.search(r"step=(\d+)", path.name)
        return int(named[1]) if named else None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, verified or not.

    Those whose manifest cannot be read come first, so that they are skipped by name and not passed over in silence;
    then the others by number; last the files of the earlier format, by time.
    """
    return sorted(folder.glob("[!.]*.ckpt"), key=_age_key, reverse=True)


def _age_key(path: Path) -> tuple[bool, float]:
    if not path.is_dir():
        return False, path.stat().st_mtime_ns
    return True, number_of(path) or float("inf")


def number_of(path: Path) -> int | None:
    """A checkpoint's number; None for one without a manifest that can be read."""
    try:
        return read_manifest(path).number
    except DamagedError:
        return None


def next_number(folder: Path) -> int:
    """The number of the checkpoint to be written next into a folder."""
    return 1 + max((number_of(path) or 0 for path in folder.glob("[!.]*.ckpt")), default=0)


def newest_checkpoint(run_dir: str | Path, *, below_step: int | None = None) -> Path | None:
    """What a run goes on from: the file or folder that the newest checkpoint which verifies holds; None in a new run.

    Damaged ones are skipped by name, with a warning each.

    Args:
        run_dir: the run's folder.
        below_step: prefer checkpoints with fewer steps behind them. A run repeated after its end redoes its last steps
            so, and writes its results again.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    found = newest_first(Path(run_dir, FOLDER))
    if below_step is not None:
        found.sort(key=lambda path: (step_of(path) or 0) >= below_step)  # stable: newest first in either part
    for path in found:
        try:
            return _verified(path)
        except DamagedError as reason:
            warnings.warn(f"skipping the damaged checkpoint {path}: {reason}", stacklevel=2)
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {found[0].parent} is whole (the warnings above say why); restore "
            "one from a backup, or remove them to start this run from its beginning"
        )
    return None


def _verified(path: Path) -> Path:
    if path.is_dir():
        verify(path)
        return path / STATE
    if not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip() is not None:
        raise DamagedError("its parts do not have the checksums they were written with")
    warnings.warn(
        f"{path} was written by an earlier version, without a manifest: its own checksums are all that vouches for it. "
        "The run's next checkpoint will have one.",
        stacklevel=3,
    )
    return path
