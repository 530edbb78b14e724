"""Muon for matrices and kernels, Adam for the rest, in one optimizer (Jordan et al. 2024, arXiv 2502.16982)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_SIDE = 16
_ADAM_RMS = 0.2


def orthogonalized(matrix: torch.Tensor, num_iterations: int = 5) -> torch.Tensor:
    """Return the nearest semi-orthogonal matrix, roughly: all singular values go to about one.

    Newton-Schulz iteration with the quintic X <- Q X, Q = a + b G + c G^2, G = X X^T. All Q are polynomials of the
    first G and commute with it, so the iteration runs on the small G alone (G <- Q G Q), and X is multiplied once.

    Args:
        matrix: (M, N).
        num_iterations: five are enough.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    gram, one = x @ x.T, torch.eye(len(x), device=x.device, dtype=x.dtype)
    product = one
    for _ in range(num_iterations):
        factor = a * one + b * gram + c * gram @ gram
        gram, product = factor @ gram @ factor, factor @ product
    x = product @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum where a parameter is a matrix, Adam elsewhere.

    A group with `orthogonalize` treats its matrices and kernels (flattened to one row an output) of at least 16 on the
    shorter side so; the steps are as long as Adam's (0.2 sqrt(longer side)), so one learning rate serves both.

    Args:
        groups: parameter groups; keys `weight_decay` (decoupled) and `orthogonalize`.
        lr: learning rate.
        betas: of Adam.
        momentum: of Muon, with Nesterov's look-ahead.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": 0.0, "orthogonalize": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Do one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        is_matrix = group["orthogonalize"] and is_orthogonalizable(parameter)
        change = self._muon(parameter, group) if is_matrix else self._adam(parameter, group)
        parameter.add_(change, alpha=-group["lr"])

    def _muon(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        rows = ahead.flatten(1)  # (outputs, inputs * kernel)
        change = orthogonalized(rows.float()) * (_ADAM_RMS * max(rows.shape) ** 0.5)
        return change.to(parameter.dtype).view(ahead.shape)

    def _adam(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        mean = state["mean"] / (1 - first ** int(state["step"]))
        square = state["square"] / (1 - second ** int(state["step"]))
        return mean / (square.sqrt() + 1e-8)


def is_orthogonalizable(parameter: torch.Tensor) -> bool:
    """Whether a parameter is matrix enough: two or more dimensions, and 16 or more on the shorter side."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= _SMALLEST_SIDE
