"""Tuning within so many seconds and so much memory: a short measurement, a plan, and an eye on the clock.

Seconds count from the call. Two steps and a look are measured, and what is left is divided: first the batch that fits
the memory, with activations recomputed if need be; then half precision, where a GPU is faster so and all steps do not
fit; then as many steps as fit, with looks that take no more than a fifth of the time.
The plan may be wrong, as other work may come to the machine. So the loop asks before each step whether there is time
for it and for the look that keeps what it brought.
"""

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from promptnet.inference.references import encode_references
from promptnet.inference.tuning.config import TuningConfig
from promptnet.inference.tuning.loss import held_out_timesteps
from promptnet.inference.tuning.views import Batch, TuningViews, held_out_batches, training_batch
from promptnet.models.twins import twin

Take = Callable[[Batch], float]
Look = Callable[[Sequence[Batch]], float]
Start = Callable[[Any, TuningViews, TuningConfig, torch.Generator], tuple[Take, Look]]
"""(pipeline, views, config, generator) -> one step of tuning on a batch, and a look at held-out batches."""

_GIB = 2**30
_TUNED = ("unet", "promptnet")
_SLOWER = 1.15  # a step may take so much longer than measured
_LEAST_STEPS = 8  # fewer are worth less than smaller batches
_LOOKING = 0.2  # share of the time for looks at the held-out noise levels
_VIEWING = 0.25  # share of the time for encoding views
_TRYING = 0.125  # share of the time that a second measurement may take


class Watch:
    """Time and memory on a device.

    Args:
        device: whose work is waited for before the clock is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now_s(self) -> float:
        """Return seconds since some moment, with the device's work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    def restart_peak(self) -> None:
        """Forget the largest memory so far."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float:
        """Return the most memory that torch held since `restart_peak`."""
        return torch.cuda.max_memory_reserved(self.device) / _GIB

    def has_memory(self) -> bool:
        """Return whether memory can be measured here."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Trial:
    """What a step was measured to take.

    Args:
        step_s: seconds of a step.
        look_s: seconds of a look at the held-out noise levels.
        peak_gib: most memory of both; 0 where it is not measured.
    """

    step_s: float
    look_s: float
    peak_gib: float = 0.0


class Pace:
    """Says during the loop whether there is time for another step.

    Args:
        watch: the clock.
        deadline_s: when tuning has to be done, on that clock.
        trial: what steps and looks take, as measured; slower ones are learned of on the way.
    """

    def __init__(self, watch: Watch, deadline_s: float, trial: Trial) -> None:
        self.watch, self.deadline_s = watch, deadline_s
        self.step_s, self.look_s = _SLOWER * trial.step_s, _SLOWER * trial.look_s

    def left(self) -> int:
        """Return how many steps fit before the deadline, with one look behind the last of them."""
        if self.deadline_s == math.inf:
            return sys.maxsize
        left_s = self.deadline_s - self.watch.now_s() - self.look_s
        return max(0, int(left_s / max(self.step_s, 1e-9)))

    def note(self, seconds: float, *, looked: bool) -> None:
        """Note what a step took, or a step with a look."""
        self.step_s = max(self.step_s, seconds - self.look_s if looked else seconds)


class Budget:
    """What a call of `customize` may take.

    Args:
        seconds: from now on; None is as long as it takes.
        vram_gb: memory of the GPU in GiB, networks included; None is what there is.
        watch: of the pipeline's device.
        start: begins tuning anew, to be measured.

    Raises:
        ValueError: a number is not above 0, or the device's memory cannot be measured.
    """

    def __init__(self, seconds: float | None, vram_gb: float | None, watch: Watch, start: Start) -> None:
        for name, value in {"seconds": seconds, "vram_gb": vram_gb}.items():
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"{name}={value!r} must be a number above 0.")
        if vram_gb is not None and not watch.has_memory():
            raise ValueError(
                f"vram_gb={vram_gb} is memory of a GPU, but this pipeline is on {watch.device}: leave it out."
            )
        self.watch, self.vram_gb, self.start = watch, vram_gb, start
        self.deadline_s = math.inf if seconds is None else watch.now_s() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.deadline_s - self.watch.now_s()

    def with_views(self, pipe: Any, images: Sequence[Any], config: TuningConfig) -> TuningConfig:
        """Fewer views, where encoding as many as asked would take more than their share of the time."""
        if self.deadline_s == math.inf:
            return config
        begin_s, size_px = self.watch.now_s(), pipe.trained_size_px[0]
        parts = pipe.vae, pipe.image_encoder, pipe.feature_extractor
        encode_references(*parts, images[:1], size_px, pipe.unet.device)
        each_s = max(self.watch.now_s() - begin_s, 1e-9)
        most = int(_VIEWING * self.left_s() / (each_s * len(images)))
        return replace(config, num_views=min(config.num_views, max(1, most)))

    def planned(self, pipe: Any, views: TuningViews, config: TuningConfig) -> tuple[Any, TuningConfig, Pace]:
        """Choose networks, batch and steps.

        Returns:
            The pipeline to tune with, the config, and what to ask before each step. No steps: there is no time for one.

        Raises:
            ValueError: the smallest batch needs more memory than there may be.
        """
        if self.left_s() <= 0:
            return pipe, _without_steps(config), Pace(self.watch, self.deadline_s, Trial(0, 0))
        pipe, config, trial = self._fitting_memory(pipe, views, config)
        if self.deadline_s == math.inf:
            return pipe, config, Pace(self.watch, self.deadline_s, trial)
        pipe, trial = self._faster(pipe, views, config, trial)
        config, trial = self._fitting_time(config, trial)
        pace = Pace(self.watch, self.deadline_s, trial)
        # Beside those on the way there is a look before the first step.
        left_s = max(0.0, self.left_s() - 2 * pace.look_s)
        every = max(config.validate_every, math.ceil(pace.look_s * (1 - _LOOKING) / (_LOOKING * pace.step_s)))
        steps = min(config.steps, int(left_s / (pace.step_s + pace.look_s / every)))
        if not steps:
            return pipe, _without_steps(config), pace
        return pipe, replace(config, steps=steps, validate_every=min(every, steps)), pace

    def _fitting_memory(self, pipe: Any, views: TuningViews, config: TuningConfig) -> tuple[Any, TuningConfig, Trial]:
        """The first kind of networks whose step fits, with the largest batch that does."""
        if self.vram_gb is None:
            return pipe, config, self._tried(pipe, views, config)
        least = math.inf
        for kind in _kinds(pipe):
            trial = self._tried(kind, views, config)
            if trial.peak_gib <= self.vram_gb:
                return kind, config, trial
            if config.batch_size > 1:
                single = self._tried(kind, views, replace(config, batch_size=1))
                grown = (trial.peak_gib - single.peak_gib) / (config.batch_size - 1)
                size = 1 + int((self.vram_gb - single.peak_gib) / max(grown, 1e-9))
                while single.peak_gib <= self.vram_gb and size >= 1:
                    smaller = replace(config, batch_size=min(size, config.batch_size - 1))
                    found = self._tried(kind, views, smaller)
                    if found.peak_gib <= self.vram_gb:
                        return kind, smaller, found
                    size = smaller.batch_size - 1
                trial = single
            least = min(least, trial.peak_gib)
        raise ValueError(
            f"vram_gb={self.vram_gb} is too little: the smallest step, one view with activations recomputed, took "
            f"{least:.1f} GiB with the networks. Load the pipeline in half precision, or give it more."
        )

    def _faster(self, pipe: Any, views: TuningViews, config: TuningConfig, trial: Trial) -> tuple[Any, Trial]:
        """Networks in half precision, where all steps do not fit, a GPU takes them faster so, and has the memory."""
        fits_all = Pace(self.watch, self.deadline_s, trial).left() >= config.steps
        is_dear = 2 * trial.step_s + trial.look_s > _TRYING * self.left_s()
        if fits_all or is_dear or pipe.unet.dtype != torch.float32 or not self.watch.has_memory():
            return pipe, trial
        half = _with_twins(pipe, torch.bfloat16)
        found = self._tried(half, views, config)
        fits = self.vram_gb is None or found.peak_gib <= self.vram_gb
        return (half, found) if fits and found.step_s < trial.step_s else (pipe, trial)

    def _fitting_time(self, config: TuningConfig, trial: Trial) -> tuple[TuningConfig, Trial]:
        """A smaller batch, where too few steps would fit; a quarter of a step is taken not to depend on it."""
        pace, wanted = Pace(self.watch, self.deadline_s, trial), min(_LEAST_STEPS, config.steps)
        if pace.left() >= wanted or config.batch_size == 1:
            return config, trial
        share = max(0.0, (self.left_s() - 3 * pace.look_s) / (wanted * pace.step_s))
        size = min(config.batch_size - 1, max(1, int(config.batch_size * share)))
        step_s = trial.step_s * (0.25 + 0.75 * size / config.batch_size)
        return replace(config, batch_size=size), replace(trial, step_s=step_s)

    def _tried(self, pipe: Any, views: TuningViews, config: TuningConfig) -> Trial:
        """Take two steps and a look; the second step counts, as the first one warms up. Nothing of it stays."""
        draws = torch.Generator().manual_seed(0)
        num_timesteps = len(pipe.scheduler.alphas_cumprod)
        held_out = held_out_timesteps(num_timesteps)
        (take, look), watch = self.start(pipe, views, config, draws), self.watch
        if self.vram_gb is not None:
            watch.restart_peak()
        moments = [watch.now_s()]
        for _ in range(2):
            take(training_batch(views, config, num_timesteps, held_out, draws))
            moments.append(watch.now_s())
            if moments[-1] - moments[0] > self.left_s() / 4:  # no time to be exact
                break
        look(held_out_batches(views, config, held_out, draws))
        look_s = watch.now_s() - moments[-1]
        return Trial(moments[-1] - moments[-2], look_s, watch.peak_gib() if self.vram_gb is not None else 0.0)


def _without_steps(config: TuningConfig) -> TuningConfig:
    warnings.warn("There was no time for a step of tuning: the subject is the encoder's own.", stacklevel=5)
    return replace(config, steps=0)


def _kinds(pipe: Any) -> Iterator[Any]:
    """The pipeline, then with activations recomputed, which is slower."""
    yield pipe
    own = _with_twins(pipe, None)
    for name in _TUNED:
        vars(own)[name].enable_gradient_checkpointing()
    yield own


def _with_twins(pipe: Any, dtype: torch.dtype | None) -> Any:
    """Networks of this call alone; weights are shared unless the type is another."""
    own = copy.copy(pipe)
    for name in _TUNED:
        vars(own)[name] = twin(getattr(pipe, name), dtype)
    return own
