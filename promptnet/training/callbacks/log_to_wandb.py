"""Weights & Biases beside TensorBoard, for those who use it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class LogToWandb(Callback):
    """Adds Lightning's `WandbLogger` to the trainer's loggers, its files in the run's folder.

    Args:
        project: of W&B.
        options: anything else that `WandbLogger` takes, such as `entity`, `name`, `id`, `offline`.

    Raises:
        ValueError: the package wandb is not installed.
    """

    def __init__(self, project: str = "promptnet", options: dict[str, Any] | None = None) -> None:
        try:
            import wandb  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error}: LogToWandb needs the extra, pip install 'promptnet[wandb]'; or take it out of "
                "trainer.callbacks, TensorBoard and metrics.jsonl hold the same figures"
            ) from error
        self.project, self.options = project, dict(options or {})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the logger."""
        from lightning.pytorch.loggers import WandbLogger

        if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            logger = WandbLogger(project=self.project, save_dir=trainer.default_root_dir, **self.options)
            trainer.loggers = [*trainer.loggers, logger]
