"""When a run saves: every so many steps, at its last step, and when it is asked to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from promptnet.training.run.checkpoints import newest_first, number_of, remove
from promptnet.training.run.preemption import NoSignalConnector, RunInterrupted, StopSignals, exit_code


class SaveState(Checkpoint):
    """Saves the whole state of training, and keeps the newest few.

    SIGTERM, SIGINT and SIGUSR1 save at the end of the optimiser step under way and end the process with status 75. They
    are also heeded during validation, which every rank does whole and so in step with the others, and while features
    are computed before the training.

    Args:
        dirpath: the checkpoints' folder.
        every_n_train_steps: optimiser steps between two checkpoints.
        keep: how many to keep. With 2, there is one to go back to if the newest should be damaged.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 250, keep: int = 2) -> None:
        if every_n_train_steps < 1 or keep < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps} and keep={keep} must be at least 1")
        self.dirpath, self.every_n_train_steps, self.keep = Path(dirpath), every_n_train_steps, keep
        self._stop = StopSignals()
        self._step = self._saved_step = 0
        self._in_validation = False

    def is_to_stop(self, trainer: Any) -> bool:
        """Whether any rank was asked to stop; all have to ask. What takes long may then leave off."""
        return self._stop.agreed(trainer)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the signals over from Lightning."""
        if stage == "fit":
            trainer._signal_connector = NoSignalConnector()
            self._stop.install()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """All ranks have to go on from the same checkpoint; a run asked to stop by now has nothing new to save."""
        chosen = trainer.strategy.broadcast(trainer.ckpt_path)
        if chosen != trainer.ckpt_path:
            raise ValueError(
                f"rank {trainer.global_rank} goes on from {trainer.ckpt_path}, rank 0 from {chosen}: they "
                "read different copies of the run's folder; give every machine the same one and repeat the command"
            )
        self._step = self._saved_step = trainer.global_step
        leave_if_asked(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time to, or if the run is to stop; never between two batches of one optimiser step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        stopping = self._stop.agreed(trainer)
        if stopping or self._step % self.every_n_train_steps == 0 or self._step == trainer.max_steps:
            self._save(trainer)
        if stopping:
            raise RunInterrupted(exit_code(trainer))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop in the middle of a validation; the repeated command begins it anew."""
        if self._is_to_leave_validation(trainer):
            for callback in trainer.callbacks:  # the average stands in the model's place while it is validated
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._leave_validation(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop behind a validation that other callbacks (images take long) may have cut short."""
        if self._is_to_leave_validation(trainer):
            self._leave_validation(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """A validation that is under way, or about to begin, is to be done (again) by whoever goes on from here."""
        loops, loop = checkpoint["loops"]["fit_loop"], trainer.fit_loop
        if self._in_validation:
            _begin_validation_anew(loops)
        elif trainer.training and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            _begin_validation_anew(loops)
            # Lightning counts the step at the end of its batch, and once more behind its validation.
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the signals back."""
        self._stop.restore()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the signals back."""
        self._stop.restore()

    def _is_to_leave_validation(self, trainer: Any) -> bool:
        return not trainer.sanity_checking and self._stop.agreed(trainer)

    def _leave_validation(self, trainer: Any) -> None:
        self._in_validation = True
        self._save(trainer)
        raise RunInterrupted(exit_code(trainer))

    def _save(self, trainer: Any) -> None:
        if self._step == self._saved_step:
            return
        trainer.save_checkpoint(self.dirpath / f"step={self._step}.ckpt", weights_only=False)
        self._saved_step = self._step
        if trainer.is_global_zero:
            # What it did not write, or cannot read, it does not remove.
            for path in [path for path in newest_first(self.dirpath) if number_of(path)][self.keep :]:
                remove(path)


def is_to_stop(trainer: Any) -> bool:
    """Whether any rank of a run was asked to stop; every rank gets the same answer, so all have to ask."""
    return any(each.is_to_stop(trainer) for each in trainer.callbacks if isinstance(each, SaveState))


def leave_if_asked(trainer: Any) -> None:
    """Leave a run in which there is nothing new to save; to be called on every rank.

    Raises:
        RunInterrupted: a rank was asked to stop.
    """
    if is_to_stop(trainer):
        raise RunInterrupted(exit_code(trainer))


def _begin_validation_anew(loops: dict[str, Any]) -> None:
    """Say in the loops' state what Lightning takes for a validation interrupted in its first batch.

    Without that, it takes a validation that was due when the checkpoint was written for done.
    """
    progress = loops["epoch_loop.val_loop.batch_progress"]
    before = progress["total"]["completed"] - progress["current"]["completed"]  # batches of earlier validations
    progress["total"] |= {"ready": before + 1, "started": before + 1, "processed": before, "completed": before}
    progress["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
