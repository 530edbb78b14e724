"""How far a run is: a bar that counts optimiser steps in a terminal, plain lines in a log file."""

from __future__ import annotations

import itertools
import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from promptnet.io.progress import new_bar


class StepProgress(ProgressBar):
    """Shows step of steps, loss, rate and time left, on the first rank.

    In a terminal that is a bar on stderr. Elsewhere (nohup, SLURM, a pipe) it is one line on stdout each time, and one
    behind each validation with its figures. train.py adds it where the config names no bar of its own; with
    `trainer.enable_progress_bar: false` nothing is shown.

    Args:
        every_n_steps: between two lines; None takes the trainer's `log_every_n_steps`.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._is_shown, self._bar, self._task = True, None, None
        self._started_s = 0.0
        self._first_step = self._step = 0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._is_shown = False

    def enable(self) -> None:
        """Show it again."""
        self._is_shown = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count where the run stands."""
        self._started_s, self._first_step = time.monotonic(), trainer.global_step
        self._step = trainer.global_step
        if self._shows(trainer) and sys.stderr.isatty():
            self._open_bar(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or print a line where one is due; batches of one step are one step."""
        if not self._shows(trainer) or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        every = self.every_n_steps or trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
        if self._step % every and self._step != trainer.max_steps:
            if self._bar is not None:
                self._bar.update(self._task, completed=self._step)
            return
        loss = _loss(outputs)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, loss=loss)
        else:
            print(self.line(trainer.max_steps, loss), flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the figures of a validation."""
        if not self._shows(trainer) or trainer.sanity_checking:
            return
        figures = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if figures and self._bar is None:
            said = "  ".join(f"{name} {float(value):.4g}" for name, value in sorted(figures.items()))
            print(f"step {trainer.global_step}  {said}", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._close_bar()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away: what comes next is a message."""
        self._close_bar()

    def line(self, max_steps: int, loss: str) -> str:
        """Say where the run is: `step 250/80000  loss 0.0912  2.31 steps/s  9 h 35 min left`."""
        elapsed_s, done = time.monotonic() - self._started_s, self._step - self._first_step
        rate = done / elapsed_s if elapsed_s > 0 else 0.0
        if max_steps <= 0:
            return f"step {self._step}  loss {loss}  {_per_s(rate)}"
        left = duration((max_steps - self._step) / rate) if rate else "unknown time"
        return f"step {self._step}/{max_steps}  loss {loss}  {_per_s(rate)}  {left} left"

    def _shows(self, trainer: Trainer) -> bool:
        return self._is_shown and trainer.is_global_zero

    def _open_bar(self, trainer: Trainer) -> None:
        bar = new_bar("loss {task.fields[loss]}")
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._bar, self._task = bar, bar.add_task("step", total=total, completed=trainer.global_step, loss="-")
        bar.start()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _loss(outputs: Any) -> str:
    found = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return "unknown" if found is None else f"{float(found):.4g}"


def _per_s(rate: float) -> str:
    return f"{rate:.3g} steps/s" if rate >= 1 or rate == 0 else f"{1 / rate:.3g} s/step"


def duration(seconds: float) -> str:
    """Return a length of time in two units: "9 h 35 min", "3 d 4 h", "12 s"."""
    whole = math.ceil(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller, part) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {smaller}"
    return f"{whole} s"
