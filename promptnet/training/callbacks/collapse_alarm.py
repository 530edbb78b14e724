"""An alarm for runs that unlearn: identity or prompt-following far below what it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from promptnet.training.callbacks.logs import log_scalars
from promptnet.training.callbacks.sampling import is_sharded
from promptnet.training.callbacks.validation_measures import ValidationMeasures

MEASURED = ("val/identity", "val/copy_paste", "val/prompt_fields", "val/prompt_clip")  # by ValidationMeasures
THRESHOLDS = {"val/identity": 0.15, "val/prompt_fields": 0.25, "val/prompt_clip": 0.06}


class CollapseAlarm(Callback):
    """After each validation compares figures with the best of the last ones: a warning, a scalar, and a stop if wanted.

    Scalars: `alarm/` and the figure's name, 1 while it is more than its threshold below the best, else 0.

    Args:
        thresholds: figure to the fall that is too much; None is `THRESHOLDS`, of which those are watched that the run
            logs. Higher must be better.
        window: validations over which the best is taken.
        patience: validations in a row below the threshold before the alarm sounds.
        stop: end the run when it sounds; it then ends as any run does, with its encoder exported.
    """

    def __init__(
        self, thresholds: dict[str, float] | None = None, window: int = 10, patience: int = 1, stop: bool = False
    ) -> None:
        if window < 2 or patience < 1:
            raise ValueError(f"window={window} must be at least 2 and patience={patience} at least 1")
        self.is_default = thresholds is None
        self.thresholds = dict(THRESHOLDS if thresholds is None else thresholds)
        self.window, self.patience, self.stop = window, patience, stop
        self.history: dict[str, list[float]] = {}
        self.num_low: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """What was seen, for the checkpoint."""
        return {"history": {name: list(values) for name, values in self.history.items()}, "num_low": dict(self.num_low)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was seen, from the checkpoint."""
        self.history, self.num_low = state_dict["history"], state_dict["num_low"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the figures that were named before the first of them is due.

        Raises:
            ValueError: `ValidationMeasures` will not give one of them in this run, or is not there.
        """
        if self.is_default or is_sharded(trainer):
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        measures = [each for each in callbacks if isinstance(each, ValidationMeasures)]
        given = {name for each in measures for name in each.tried(trainer, pl_module)}
        self._refuse([name for name in self.thresholds if name in MEASURED and name not in given], given)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this validation's figures with their best.

        Raises:
            ValueError: a figure that was named is not logged by this run.
        """
        if trainer.sanity_checking:
            return
        found = {name: float(trainer.callback_metrics[name]) for name in self._watched(trainer)}
        sounds = {name: self._sounds(trainer, name, now) for name, now in found.items()}
        log_scalars(trainer, {f"alarm/{name}": float(each) for name, each in sounds.items()})
        if self.stop:
            trainer.should_stop = trainer.should_stop or _any_rank(trainer, any(sounds.values()))

    def _watched(self, trainer: Trainer) -> list[str]:
        logged = trainer.callback_metrics
        missing = [name for name in self.thresholds if name not in logged]
        if not self.is_default:
            self._refuse(missing, logged)
        if len(missing) == len(self.thresholds) and not self.history:
            rank_zero_warn("CollapseAlarm has nothing to watch: neither identity nor prompt-following is measured here")
        return [name for name in self.thresholds if name in logged]

    def _refuse(self, missing: Sequence[str], logged: Iterable[str]) -> None:
        if missing:
            raise ValueError(
                f"CollapseAlarm watches {', '.join(missing)}, but this run logs {', '.join(sorted(logged)) or 'none'}: "
                "add ValidationImages and ValidationMeasures to trainer.callbacks, or name other thresholds"
            )

    def _sounds(self, trainer: Trainer, name: str, value: float) -> bool:
        history = self.history.setdefault(name, [])
        history.append(value)
        del history[: -self.window]
        fall = fall_from_best(history, self.window)
        self.num_low[name] = self.num_low.get(name, 0) + 1 if fall > self.thresholds[name] else 0
        if self.num_low[name] < self.patience:
            return False
        rank_zero_warn(
            f"step {trainer.global_step}: {name} has collapsed to {value:.3f}, {fall:.3f} below its best of the last "
            f"{len(history)} validations (threshold {self.thresholds[name]:g})"
            + ("; the run stops" if self.stop else "; look at the images in TensorBoard")
        )
        return True


def _any_rank(trainer: Trainer, stop: bool) -> bool:
    """Ranks may differ in the last digit of a figure; where one stops alone, the others wait for it forever."""
    return trainer.strategy.reduce_boolean_decision(stop, all=False) if trainer.world_size > 1 else stop


def fall_from_best(history: Sequence[float], window: int) -> float:
    """The best of the last `window` values minus the last: at least 0, NaN where nothing is known.

    A last value that is not finite is an infinite fall from any that was.
    """
    recent = history[-window:]
    known = [value for value in recent if math.isfinite(value)]
    if not known:
        return math.nan
    return max(known) - recent[-1] if math.isfinite(recent[-1]) else math.inf
