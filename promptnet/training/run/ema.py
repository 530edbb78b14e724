"""Where a run's weight average is kept, and what it does without where its strategy cuts weights into parts.

A config sets the average up, as Lightning's `EMAWeightAveraging` among `trainer.callbacks`. That callback puts the
average in the model's place before a stage's `on_train_end`, so that a stage exports averaged weights.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def keeps_no_average(strategy: Any) -> bool:
    """Whether Lightning cannot average weights here: it finds them in parts (FSDP), or does not store the average."""
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)


def average_where_it_trains(trainer: Any) -> None:
    """Keep weight averages on the device that trains, unless the config names another.

    Lightning makes the average before it moves the stage there. The average would stay in the host's memory, and every
    step would carry the weights to it.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging) and callback._device is None:
            callback._device = trainer.strategy.root_device


def leave_out_averaging(trainer: Any) -> None:
    """Take weight averages out of the callbacks where there can be none, and say so."""
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    if averaging and keeps_no_average(trainer.strategy):
        rank_zero_warn(
            f"no {type(averaging[0]).__name__} in this run: Lightning does not average weights under "
            f"{type(trainer.strategy).__name__}, so the encoder is that of the last step (ddp keeps the average)"
        )
        trainer.callbacks = [callback for callback in trainer.callbacks if callback not in averaging]
