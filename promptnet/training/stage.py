"""What every training stage shares: optimiser, learning-rate schedule, and a count of the samples seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import nn

from promptnet.io.configs import drop_sources
from promptnet.training.muon import Muon

_FSDP_PART = "_fsdp_wrapped_module."  # stands in names behind every module that FSDP has wrapped


def channels_last(model: Any) -> Any:
    """The same model, its kernels laid out as the CPU's and the GPU's convolutions like them best."""
    return nn.Module.to(model, memory_format=torch.channels_last)


class Stage(L.LightningModule):
    """Base of the Lightning modules: AdamW with a schedule over the trainer's `max_steps`.

    Args:
        learning_rate: peak.
        weight_decay: of matrices and kernels. Biases, norms, and everything with "embedding" in its name are never
            decayed: tables of words, and also the linear and convolution layers that are called so, such as
            `time_embedding`, `vision_embedding` and `promptnet_cond_embedding` of the encoder.
        warmup_steps: optimiser steps of linear warm-up.
        decay_fraction: share of all steps, at the end, over which a trapezoid falls linearly to zero.
        betas: of Adam.
        schedule: "trapezoid", "constant" or "cosine", all after the warm-up.
        decay_all: decay everything that trains, as published trainings do.
        optimizer: "adamw", "adamw8bit" of bitsandbytes, which keeps its moments in a quarter of the memory, or "muon",
            which treats what decays, and gives the rest to Adam.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        decay_fraction: float = 0.4,
        betas: tuple[float, float] = (0.9, 0.99),
        schedule: Schedule = "trapezoid",
        optimizer: Optimizer = "adamw",
        decay_all: bool = False,
    ) -> None:
        super().__init__()
        self.schedule: Schedule = schedule
        self.optimizer: Optimizer = optimizer
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.decay_fraction, self.betas = warmup_steps, decay_fraction, betas
        self.decay_all = decay_all
        self._decayed: set[str] | None = None
        self._told: list[dict[str, Any]] = []

    def trainable(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters that train, with their names."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)

    def setup(self, stage: str) -> None:
        """Note which parameters decay while they still have their shapes: FSDP makes them flat before the optimiser."""
        self._decayed = self._names_to_decay()

    def _names_to_decay(self) -> set[str]:
        named = self.trainable()
        return {name for name, value in named if self.decay_all or (value.ndim >= 2 and "embedding" not in name)}

    def configure_optimizers(self) -> Any:
        """AdamW in two groups (with and without decay) and the schedule, stepped every optimiser step."""
        names = self._names_to_decay() if self._decayed is None else self._decayed
        named = [(name.replace(_FSDP_PART, ""), value) for name, value in self.trainable()]
        decayed = [value for name, value in named if name in names]
        others = [value for name, value in named if name not in names]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = build_optimizer(self.optimizer, groups, self.learning_rate, self.betas)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate_factor(step, num_steps))
        self._told = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Train as this command says: a checkpoint has brought the rates and decays of the one that wrote it."""
        (optimizer,), (schedule,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        restate(optimizer, self._told, schedule.scheduler)

    def rate_factor(self, step: int, num_steps: int) -> float:
        """The learning rate at an optimiser step, as a share of its peak."""
        return learning_rate_factor(
            self.schedule,
            step,
            warmup_steps=self.warmup_steps,
            num_steps=num_steps,
            decay_fraction=self.decay_fraction,
        )


Optimizer = Literal["adamw", "adamw8bit", "muon"]


Schedule = Literal["trapezoid", "constant", "cosine"]


def build_optimizer(
    name: Optimizer, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """AdamW over groups of parameters; "adamw8bit" keeps its two moments in 8 bits (arXiv 2110.02861).

    "muon" treats the matrices of the first group with `promptnet.training.muon`, and the rest with Adam.

    Raises:
        ValueError: the name is not known, or bitsandbytes is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
    if name == "adamw8bit":
        return _bitsandbytes().optim.AdamW8bit(groups, lr=learning_rate, betas=betas)
    if name == "muon":
        return Muon(
            [{**group, "orthogonalize": place == 0} for place, group in enumerate(groups)], learning_rate, betas
        )
    raise ValueError(f"optimizer={name!r} is not known: it is 'adamw', 'adamw8bit' or 'muon'")


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "optimizer='adamw8bit' needs bitsandbytes: pip install 'promptnet[8bit]', or use optimizer='adamw'"
        ) from error
    return bitsandbytes


SETTINGS = ("lr", "initial_lr", "weight_decay", "betas")


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what an optimiser was told for each of its groups of parameters."""
    return [{name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups]


def restate(optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, Any]], schedule: Any = None) -> None:
    """Have an optimiser and its schedule do what they were told when they were built.

    A checkpoint brings back the settings of the command that wrote it, the rate of its last step among them. Where
    nothing has changed, this changes nothing, to the last bit.

    Args:
        optimizer: with the state of a checkpoint.
        settings: `settings_of` it before that.
        schedule: the `LambdaLR` that sets its rates; None where there is none.
    """
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        group.update(wanted)
    if schedule is None:
        return
    schedule.base_lrs = [wanted["initial_lr"] for wanted in settings]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    schedule._last_lr = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def learning_rate_factor(
    schedule: Schedule, step: int, *, warmup_steps: int, num_steps: int, decay_fraction: float
) -> float:
    """The factor of the peak rate at optimiser step `step` of `num_steps`.

    All rise linearly over `warmup_steps`. "trapezoid" stays and falls linearly to zero over the last `decay_fraction`
    of the steps, "constant" stays, "cosine" falls to zero along half a cosine.

    Raises:
        ValueError: the schedule is not known.
    """
    rise = (step + 1) / max(1, warmup_steps)
    if schedule == "trapezoid":
        decay_steps = max(1, round(decay_fraction * num_steps))
        return min(1.0, rise, max(0, num_steps - step) / decay_steps)
    if schedule == "constant":
        return min(1.0, rise)
    if schedule == "cosine":
        done = min(1.0, max(0, step - warmup_steps) / max(1, num_steps - warmup_steps))
        return min(rise, (1 + math.cos(math.pi * done)) / 2)
    raise ValueError(f"schedule={schedule!r} is not known: it is 'trapezoid', 'constant' or 'cosine'")


def save_half(model: Any, folder: str | Path) -> None:
    """Write a model as float16 safetensors with its config.

    Weights are of order one, so half precision costs nothing that `promptnet evaluate base` can see, and it halves what
    the embedded model adds to the repository's history.

    Raises:
        ValueError: a weight is not finite, or is too large for half precision; nothing is written.
    """
    nn.Module.to(
        model, torch.float16
    )  # not model.to: diffusers warns of modules to keep in float32, and there are none
    check_finite(model, folder)
    model.save_pretrained(str(folder))
    drop_sources(folder)


def check_finite(model: nn.Module, folder: str | Path) -> None:
    """Refuse to replace what is in `folder` by weights that hold no numbers.

    Raises:
        ValueError: names the first of them.
    """
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(
            f"{len(bad)} tensors of {type(model).__name__}, {bad[0]} the first, hold values that are not finite in "
            f"half precision, so '{folder}' stays as it is: go on from an earlier checkpoint with a lower learning_rate"
        )
