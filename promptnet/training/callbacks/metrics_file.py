"""Every logged scalar in the run's folder, whatever other loggers there are."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from promptnet.training.measures.metrics_file import append_metrics, cut_metrics

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
