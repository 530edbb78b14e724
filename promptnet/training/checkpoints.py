"""Checkpoints that are whole or not there: a process may be killed at any moment, also while it writes one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name, flushes to the disk, then renames: a file under its final name is complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write one checkpoint file."""
        final = Path(path)
        draft = final.with_name(f".{final.name}.{os.getpid()}.draft")
        try:
            super().save_checkpoint(checkpoint, draft, storage_options)
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """The checkpoint of a run's folder with the most steps behind it, None where there is none."""
    found = Path(run_dir).glob("checkpoints/*.ckpt")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
