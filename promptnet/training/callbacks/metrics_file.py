"""Every logged scalar in the run's folder, whatever other loggers there are."""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from promptnet.io.atomic import write_whole

FILE_NAME = "metrics.jsonl"


class JsonLinesLogger(Logger):
    """A Lightning logger that appends lines to `metrics.jsonl`.

    Args:
        folder: of the run.
        steps_done: how many optimiser steps the run has behind it; Lightning's own count is one behind while it logs.
    """

    def __init__(self, folder: Path, steps_done: Callable[[], int]) -> None:
        super().__init__()
        self.path, self._steps_done = folder / FILE_NAME, steps_done

    @property
    def name(self) -> str:
        """As Lightning wants it."""
        return "metrics"

    @property
    def version(self) -> str:
        """As Lightning wants it."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_metrics(self.path, self._steps_done(), {name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Nothing: the run's resolved config lies beside this file."""


class MetricsFile(Callback):
    """Keeps `metrics.jsonl` in the run's folder (the trainer's `default_root_dir`): see `measures.metrics_file`.

    train.py adds it to every run; a trainer of one's own is given it.
    When a run is resumed, lines of steps beyond the checkpoint are cut: those steps are done and logged again.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the logger to the trainer's."""
        if not any(isinstance(logger, JsonLinesLogger) for logger in trainer.loggers):
            logger = JsonLinesLogger(Path(trainer.default_root_dir), lambda: trainer.global_step)
            trainer.loggers = [*trainer.loggers, logger]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut what the resumed run will write again."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / FILE_NAME
            num_cut = cut_metrics(path, trainer.global_step)
            if num_cut:
                rank_zero_info(f"{path}: {num_cut} lines beyond step {trainer.global_step} cut, the run repeats them")


def metric_line(step: int, scalars: Mapping[str, float], wall_time_s: float | None = None) -> str:
    """One line of the file, its end included."""
    now_s = time.time() if wall_time_s is None else wall_time_s
    entry: dict[str, Any] = {"step": step, "wall_time_s": round(now_s, 3)}
    entry |= {name: _spelled(value) for name, value in scalars.items()}
    return json.dumps(entry, allow_nan=False) + "\n"


def append_metrics(path: Path, step: int, scalars: Mapping[str, float]) -> None:
    """Add one line, in one write: a process killed meanwhile leaves a torn last line at worst."""
    with path.open("a", encoding="utf-8") as file:
        file.write(metric_line(step, scalars))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The file's lines as dictionaries, numbers as numbers; torn lines are left out, a missing file is empty."""
    if not path.is_file():
        return []
    entries = (_parsed(line) for line in path.read_text("utf-8").splitlines())
    return [{name: _number(value) for name, value in entry.items()} for entry in entries if entry is not None]


def cut_metrics(path: Path, last_step: int) -> int:
    """Drop torn lines and lines of steps beyond `last_step`, whole or not at all, and return how many were dropped.

    What a run logged after its last checkpoint it will log again when it goes on from there.
    """
    if not path.is_file():
        return 0
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _is_kept(line, last_step)]
    if len(kept) < len(lines):
        write_whole(path, "".join(kept), public=True)
    return len(lines) - len(kept)


def values_of(entries: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of one scalar, in the file's order."""
    return [(int(entry["step"]), float(entry[name])) for entry in entries if name in entry]


def _is_kept(line: str, last_step: int) -> bool:
    entry = _parsed(line) if line.endswith("\n") else None
    return entry is not None and entry["step"] <= last_step


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def _spelled(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
