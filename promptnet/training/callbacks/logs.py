"""Writing to all of a trainer's loggers at once, also where Lightning's own `log` is not allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from PIL import Image


def log_scalars(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Log numbers under the run's present step, to every logger."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=trainer.global_step)
        logger.save()


def log_image(trainer: Trainer, name: str, image: Image.Image) -> None:
    """Log an image to every logger that takes one: TensorBoard, and loggers with Lightning's `log_image`."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_image"):
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
            experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [image], step=trainer.global_step)  # type: ignore[attr-defined]


def log_text(trainer: Trainer, name: str, lines: Sequence[str]) -> None:
    """Log lines of text to TensorBoard."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            experiment.add_text(name, "  \n".join(lines), trainer.global_step)


def check_after_averaging(trainer: Trainer, callback: Callback) -> None:
    """At the end of a training, weights are the averaged ones only for callbacks that come after the averaging.

    Raises:
        ValueError: `callback` comes before it.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for averaging in callbacks[callbacks.index(callback) :]:
        if isinstance(averaging, WeightAveraging):
            name = type(callback).__name__
            raise ValueError(f"{name} must come after {type(averaging).__name__} in trainer.callbacks: move it down")
