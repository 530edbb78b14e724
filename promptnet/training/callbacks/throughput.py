"""How many images a second, how long the trainer waits for data, and how much of the device that uses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


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
            self.recomputed_per_image = self._counter.checkpointed / num_rows(batch)
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


class PeakTflops(NamedTuple):
    """Dense peak of one device in 10^12 operations a second, from its data sheet.

    Args:
        half: float16 or bfloat16, accumulating in float32.
        tf32: float32 matrices on tensor cores.
        full: float32.
    """

    half: float
    tf32: float
    full: float


# The first name found in the device's own counts, so longer names stand before shorter ones.
PEAKS: dict[str, PeakTflops] = {
    "H200": PeakTflops(989.0, 494.5, 67.0),
    "GH200": PeakTflops(989.0, 494.5, 67.0),
    "H100 PCIe": PeakTflops(756.0, 378.0, 51.0),
    "H100": PeakTflops(989.0, 494.5, 67.0),
    "A100": PeakTflops(312.0, 156.0, 19.5),
    "L40S": PeakTflops(362.0, 183.0, 91.6),
    "L4": PeakTflops(121.0, 60.0, 30.3),
    "A10": PeakTflops(125.0, 62.5, 31.2),
    "V100": PeakTflops(125.0, 15.7, 15.7),
    "T4": PeakTflops(65.0, 8.1, 8.1),
    "RTX 4090": PeakTflops(165.2, 82.6, 82.6),
    "RTX 3090": PeakTflops(71.0, 35.6, 35.6),
}


def peak_tflops(device_name: str, precision: str, has_tf32: bool = False) -> float | None:
    """What a device can do at most under one of Lightning's precisions; None for devices that are not in `PEAKS`.

    Args:
        device_name: as torch.cuda.get_device_name says it.
        precision: for example "bf16-mixed" or "32-true".
        has_tf32: whether float32 products may run on tensor cores.
    """
    words = device_name.replace("-", " ").split()
    for name, peak in PEAKS.items():
        if all(word in words for word in name.split()):
            return peak.half if "16" in precision else peak.tf32 if has_tf32 else peak.full
    return None


def utilisation(flop_per_image: float, images_per_s: float, tflops: float) -> float:
    """Of one device: operations a second over what it could do. Those that the model needs give the model's share
    (MFU), those that are done, recomputation included, the hardware's (HFU).
    """
    return flop_per_image * images_per_s / (tflops * 1e12)


def num_rows(batch: Any) -> int:
    """How many samples a batch holds: the length of the first tensor or list in it.

    Raises:
        ValueError: there is none.
    """
    if isinstance(batch, torch.Tensor):
        return len(batch)
    inside = list(batch.values()) if isinstance(batch, Mapping) else list(batch) if isinstance(batch, Sequence) else []
    for value in inside:
        if isinstance(value, torch.Tensor) and value.ndim:
            return len(value)
        if isinstance(value, (list, tuple)):
            return len(value)
    raise ValueError(f"a batch of type {type(batch).__name__} holds neither a tensor nor a list, so no samples")


class FlopCount(TorchDispatchMode):
    """Adds up `total` floating-point operations, by PyTorch's own formulas, of what runs while it is entered.

    `checkpointed` is the part of them that gradient checkpointing does a second time: what runs inside a backward pass
    with gradients switched on.

    `torch.utils.flop_counter.FlopCounterMode` takes some operations apart to count their pieces, and their results are
    then not bit for bit the same: in a training, the counted step would decide the weights. Here each runs as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.checkpointed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count it if there is a formula for it."""
        from torch.utils.flop_counter import flop_registry

        outcome = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=outcome)
            self.total += flops
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
                self.checkpointed += flops
        return outcome


@contextmanager
def counting_flops(networks: Sequence[nn.Module]) -> Iterator[FlopCount]:
    """Count the floating-point operations inside the block, backward included.

    Results stay the same, bit for bit. Compiled networks run eagerly meanwhile.
    """
    compiled = any(getattr(module, "_compiled_call_impl", None) for network in networks for module in network.modules())
    with ExitStack() as stack:
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield stack.enter_context(FlopCount())
