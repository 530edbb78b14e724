"""Learning one edit outside of a run: nothing on the disk but the card."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from promptnet.inference.editing.card import EditError
from promptnet.training.editing.stage import EditStage


def learn_card(
    stage: EditStage,
    data: LightningDataModule,
    *,
    iterations: int,
    device: str = "cpu",
    on_step: Callable[[], None] | None = None,
) -> None:
    """Train the stage, which writes its card.

    Args:
        stage: what is learned.
        data: on which seeds or images.
        iterations: of the optimisation.
        device: one, as torch names it.
        on_step: called after each iteration.

    Raises:
        EditError: the loss became infinite or no number; no card is written.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    accelerator, _, index = device.partition(":")
    torch.set_flush_denormal(True)  # small CPU models crawl through denormal numbers otherwise

    def after_step(trainer: Trainer, _module: Any, outputs: Any, *_: Any) -> None:
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise EditError(
                f"Learning failed: the loss is {loss} at iteration {trainer.global_step} of {iterations}. Lower "
                f"learning_rate={stage.learning_rate}, or check the base model's weights."
            )
        if on_step is not None:
            on_step()

    Trainer(
        max_steps=iterations,
        accelerator="gpu" if accelerator == "cuda" else accelerator,
        devices=[int(index)] if accelerator == "cuda" and index else 1,
        logger=False,
        callbacks=[LambdaCallback(on_train_batch_end=after_step)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    ).fit(stage, datamodule=data)
