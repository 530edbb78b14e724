"""How far a run has come in its endless stream, whatever batches it was read in."""

from __future__ import annotations

from typing import Any

import lightning as L


class CountedSamples(L.LightningDataModule):
    """A data module whose checkpoints say how many samples the run has seen.

    Steps do not say it: a run may go on with other batches, another accumulation, or on more devices.
    """

    batch_size: int
    """A process and step."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = (0, 0)

    @property
    def samples_seen(self) -> int:
        """Over all ranks and batches, up to the last optimiser step."""
        step, seen = self._counted
        if self.trainer is None:
            return seen
        a_step = self.trainer.accumulate_grad_batches * self.batch_size * self.trainer.world_size
        return seen + (self.trainer.global_step - step) * a_step

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"step": self.trainer.global_step if self.trainer else 0, "samples_seen": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._counted = state_dict["step"], state_dict["samples_seen"]
