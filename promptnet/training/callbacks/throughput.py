"""How many images a second, how long the trainer waits for data, and how much of the device that uses."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler

from promptnet.training.measures.speed import FlopCount, counting_flops, num_rows, peak_tflops, utilisation


class FetchClock(Profiler):
    """A Lightning profiler that adds up the seconds spent on fetching batches, and hands everything on to another.

    Args:
        inner: the trainer's own.
    """

    def __init__(self, inner: Profiler) -> None:
        super().__init__(dirpath=inner.dirpath, filename=inner.filename)
        self.inner, self.fetching_s, self._since_s = inner, 0.0, 0.0

    def start(self, action_name: str) -> None:
        """Begin an action."""
        self.inner.start(action_name)
        if action_name.endswith("train_dataloader_next"):
            self._since_s = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """End an action."""
        if action_name.endswith("train_dataloader_next"):
            self.fetching_s += time.perf_counter() - self._since_s
        self.inner.stop(action_name)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Hand on."""
        self.inner.setup(stage, local_rank, log_dir)

    def summary(self) -> str:
        """Hand on."""
        return self.inner.summary()

    def describe(self) -> None:
        """Hand on."""
        self.inner.describe()

    def teardown(self, stage: str | None) -> None:
        """Hand on."""
        self.inner.teardown(stage)


class Throughput(Callback):
    """Logs the run's speed since it was last logged, validation left out.

    Scalars: `speed/images_per_s` over all devices, checkpoints and logging included; `speed/data_wait_share`, the share
    of the time in which the trainer waited for the next batch (on this rank); `speed/step_tflop`, what one batch on one
    device takes; where the device's peak is known `speed/mfu`, the share of it that the model's own operations make,
    and `speed/hfu`, the same with what gradient checkpointing computes again. `speed/step_tflop` counts that too.

    The operations are counted once a run, in its first batch, which runs slower for it and is left out of the figures.

    Args:
        peak_tflops: of one device, in 10^12 operations a second; None looks its name up (`measures.speed.PEAKS`).
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"peak_tflops={peak_tflops} must be above 0")
        self.peak_tflops = peak_tflops
        self.flop_per_image: float | None = None
        self.recomputed_per_image = 0.0
        self._clock: FetchClock | None = None
        self._counting = ExitStack()
        self._counter: FlopCount | None = None
        self._since_s: float | None = None
        self._fetched_s = self._elsewhere_s = self._validating_since_s = 0.0
        self._num_images = self._logged_step = 0

    def state_dict(self) -> dict[str, Any]:
        """The count: a resumed run takes the same steps in the same way as one that was never interrupted."""
        return {"flop_per_image": self.flop_per_image, "recomputed_per_image": self.recomputed_per_image}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The count, from the checkpoint."""
        self.flop_per_image = state_dict["flop_per_image"]
        self.recomputed_per_image = state_dict.get("recomputed_per_image", 0.0)  # an earlier version knew the sum alone

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put a clock on the data."""
        profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
        self._clock = profiler if isinstance(profiler, FetchClock) else FetchClock(profiler)
        trainer.profiler = self._clock  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is measured before the first batch is done."""
        self._since_s, self._logged_step = None, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count operations in the run's first batch."""
        if self.flop_per_image is None:
            networks = [pl_module, *getattr(pl_module, "frozen", {}).values()]
            self._counter = self._counting.enter_context(counting_flops(networks))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch up; log where Lightning logs."""
        if self._counter is not None:
            self._counting.close()
            self.flop_per_image = self._counter.total / num_rows(batch)
            self.recomputed_per_image = self._counter.recomputed / num_rows(batch)
            self._counter = None
        if self._since_s is None:
            self._restart()
            return
        self._num_images += num_rows(batch) * trainer.world_size
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._logged_step and every and step % every == 0:
            self._logged_step = step
            pl_module.log_dict(self._figures(trainer, num_rows(batch)))
            self._restart()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the counting, if it is on."""
        self._counting.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the watch."""
        self._validating_since_s = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self._elsewhere_s += time.perf_counter() - self._validating_since_s

    def _restart(self) -> None:
        assert self._clock is not None
        self._since_s, self._fetched_s = time.perf_counter(), self._clock.fetching_s
        self._elsewhere_s, self._num_images = 0.0, 0

    def _figures(self, trainer: Trainer, rows: int) -> dict[str, float]:
        assert self._clock is not None
        assert self._since_s is not None
        assert self.flop_per_image is not None
        seconds = time.perf_counter() - self._since_s - self._elsewhere_s
        images_per_s = self._num_images / seconds
        figures = {
            "speed/images_per_s": images_per_s,
            "speed/data_wait_share": (self._clock.fetching_s - self._fetched_s) / seconds,
            "speed/step_tflop": self.flop_per_image * rows / 1e12,
        }
        peak = self.peak_tflops or _looked_up(trainer)
        if peak:
            needed, each = self.flop_per_image - self.recomputed_per_image, images_per_s / trainer.world_size
            figures["speed/mfu"] = utilisation(needed, each, peak)
            figures["speed/hfu"] = utilisation(self.flop_per_image, each, peak)
        return figures


def _looked_up(trainer: Trainer) -> float | None:
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    has_tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_tflops(torch.cuda.get_device_name(device), str(trainer.precision), has_tf32)
