"""How large a step's gradients are, and which of them are not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

Named = Iterable[tuple[str, nn.Parameter]]


def gradient_norm(named: Named) -> torch.Tensor | None:
    """The L2 norm over all gradients, None where there are none; not finite if one of them is not."""
    gradients = [value.grad for _, value in named if value.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


def largest_gradient(named: Named) -> torch.Tensor | None:
    """The largest absolute value in any gradient, None where there are none."""
    gradients = [value.grad for _, value in named if value.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, float("inf")) if gradients else None


def nonfinite_gradients(named: Named) -> list[str]:
    """Names of the parameters whose gradients hold a value that is not finite, in order."""
    return [name for name, value in named if value.grad is not None and not bool(value.grad.isfinite().all())]
