"""Lightning's trainer, with one change: whatever a strategy writes as a checkpoint is whole, or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from promptnet.training.run.checkpoints import STATE, CheckpointError, draft_of, next_number, not_written
from promptnet.training.run.manifest import seal


class RunTrainer(Trainer):
    """Saves into a draft folder, then seals it; so one file and the many of a sharding strategy are treated alike."""

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint `filepath`, a folder; to be called on every rank, as Lightning's own.

        Raises:
            CheckpointError: it could not be written. What was there before still is, and nothing half written.
        """
        final = Path(self.strategy.broadcast(str(filepath)))
        draft = draft_of(final)
        if self.is_global_zero:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        self.strategy.barrier("a draft's folder")
        try:
            super().save_checkpoint(draft / STATE, weights_only, storage_options)
            if self.is_global_zero:
                self._seal(draft, final)
        except BaseException:
            if self.is_global_zero:
                shutil.rmtree(draft, ignore_errors=True)
            raise
        self.strategy.barrier("a sealed checkpoint")

    def _run_stage(self) -> Any:
        """Train; or, where the last step is done already and only its outcome is missing, write that.

        Lightning's own loop would do nothing then, the hooks included. (Read in Lightning 2.6.)
        """
        if self.state.fn != TrainerFn.FITTING or not 0 < self.max_steps <= self.global_step:
            return super()._run_stage()
        self.fit_loop.setup_data()
        self.fit_loop.reset()
        self.fit_loop.on_run_start()
        self.fit_loop.on_run_end()

    def _seal(self, draft: Path, final: Path) -> None:
        try:
            seal(draft, final, number=next_number(final.parent), step=self.global_step)
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            num_bytes = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
            raise not_written(final, num_bytes, error) from error
