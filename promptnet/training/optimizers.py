"""Optimisers by name, and the learning rate's course over a run."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

Optimizer = Literal["adamw", "adamw8bit"]
Schedule = Literal["trapezoid", "constant", "cosine"]


def build_optimizer(
    name: Optimizer, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """AdamW over groups of parameters; "adamw8bit" keeps its two moments in 8 bits (arXiv 2110.02861).

    Raises:
        ValueError: the name is not known, or bitsandbytes is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
    if name == "adamw8bit":
        return _bitsandbytes().optim.AdamW8bit(groups, lr=learning_rate, betas=betas)
    raise ValueError(f"optimizer={name!r} is not known: it is 'adamw' or 'adamw8bit'")


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "optimizer='adamw8bit' needs bitsandbytes: pip install 'promptnet[8bit]', or use optimizer='adamw'"
        ) from error
    return bitsandbytes


def learning_rate_factor(
    schedule: Schedule, step: int, *, warmup_steps: int, num_steps: int, decay_share: float
) -> float:
    """The factor of the peak rate at optimiser step `step` of `num_steps`.

    All rise linearly over `warmup_steps`. "trapezoid" stays and falls linearly to zero over the last `decay_share` of
    the steps, "constant" stays, "cosine" falls to zero along half a cosine.

    Raises:
        ValueError: the schedule is not known.
    """
    rise = (step + 1) / max(1, warmup_steps)
    if schedule == "trapezoid":
        decay_steps = max(1, round(decay_share * num_steps))
        return min(1.0, rise, max(0, num_steps - step) / decay_steps)
    if schedule == "constant":
        return min(1.0, rise)
    if schedule == "cosine":
        done = min(1.0, max(0, step - warmup_steps) / max(1, num_steps - warmup_steps))
        return min(rise, (1 + math.cos(math.pi * done)) / 2)
    raise ValueError(f"schedule={schedule!r} is not known: it is 'trapezoid', 'constant' or 'cosine'")
