"""A run that has come to its end says so in its folder, so that repeating its command does no work twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptnet.io.atomic import write_whole

FILE_NAME = "finished.json"
_EXPORTS = ("export_dir", "out")  # what stages call the place that they write to at their end


@dataclass(frozen=True)
class Finished:
    """What a finished run has done.

    Args:
        step: optimiser steps behind it.
        exported: where its outcome was written; None for stages that write nothing.
    """

    step: int
    exported: str | None

    def write(self, run_dir: Path) -> None:
        """Leave it in the run's folder, whole or not at all."""
        write_whole(run_dir / FILE_NAME, json.dumps(asdict(self)), public=True)

    def covers(self, max_steps: int, exported: str | None) -> bool:
        """Whether a command of so many steps that writes to this place has nothing left to do."""
        return 0 < max_steps <= self.step and exported == self.exported and _is_there(exported)

    def message(self, run_dir: Path) -> str:
        """For the console."""
        where = f"; its outcome is in {self.exported}" if self.exported else ""
        return (
            f"{run_dir} is finished at step {self.step}{where}. To train on, raise --trainer.max_steps; to do the last "
            "steps and the outcome again, add --redo_end"
        )


def read_finished(run_dir: Path) -> Finished | None:
    """Return what a run says of its end; None for one that has not come to it."""
    try:
        return Finished(**json.loads((run_dir / FILE_NAME).read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def export_of(model: Mapping[str, Any]) -> str | None:
    """Return where a stage's configuration says that its outcome goes."""
    given = model.get("init_args") or {}
    return next((str(given[name]) for name in _EXPORTS if given.get(name)), None)


def _is_there(exported: str | None) -> bool:
    if exported is None:
        return True
    place = Path(exported)
    return place.is_file() or next(place.rglob("*.safetensors"), None) is not None
