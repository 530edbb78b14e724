"""What a multistep solver remembers, and what that means for latents that were noised again.

Multistep solvers extrapolate along one trajectory of the ODE. They keep the outputs m_(i-1), m_(i-2), ... of earlier
steps as values of one smooth function of lambda, and UniPC also x_(i-1), from which its corrector computes x_i anew.
Re-noising moves x_i to x'_i, on another trajectory, of which nothing is known but m_i at x'_i. With the old memory
m_i - m_(i-1) would hold the jump J (x'_i - x_i) beside the slope, of order sqrt(h) where the slope is of order h, and
UniPC's corrector, which starts from x_(i-1), would take the jump back altogether. So the memory begins anew at x'_i: a
first-order step, and the full order again where no more is noised. That is of the order that re-noising itself has
(docs/how-it-works.md).

An image of the same batch that is not noised again keeps its memory: rows that differ in it get solvers of their own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows, (R,), that share a solver's memory; None for all."""

    rows: Tensor | None
    scheduler: Any


class Solver:
    """A scheduler whose memory may begin anew in some rows of the batch.

    Args:
        scheduler: a diffusers scheduler; it makes the steps, as long as all rows have one memory.
    """

    def __init__(self, scheduler: Any) -> None:
        self._parts = [_Part(None, scheduler)]

    def restart(self, rows: Tensor, num_rows: int) -> None:
        """Forget all earlier steps of some rows; a scheduler that remembers none stays as it is.

        Args:
            rows: (R,) indices.
            num_rows: B, of the batch.
        """
        if _remembers(self._parts[0].scheduler):
            self._parts = [part for whole in self._parts for part in _split(whole, rows, num_rows)]

    def step(self, output: Tensor, timestep: Tensor, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Make the scheduler's step from x, (B, C, H, W), and return where it leads."""
        if len(self._parts) == 1:
            return self._parts[0].scheduler.step(output, timestep, x, **kwargs, return_dict=False)[0]
        after = torch.zeros_like(x)
        for part in self._parts:
            assert part.rows is not None
            given = output[part.rows], timestep, x[part.rows]
            moved = part.scheduler.step(*given, **_of_rows(kwargs, part.rows), return_dict=False)[0]
            after = after.index_copy(0, part.rows, moved)
        return after


def _remembers(scheduler: Any) -> bool:
    return any(output is not None for output in getattr(scheduler, "model_outputs", ()))


def _split(part: _Part, rows: Tensor, num_rows: int) -> list[_Part]:
    """The part's rows that go on, and those that begin anew."""
    own = torch.arange(num_rows, device=rows.device) if part.rows is None else part.rows
    begin = torch.isin(own, rows)
    if begin.all():
        _forget(part.scheduler)
        return [part]
    if not begin.any():
        return [part]
    going_on, new = part.scheduler, copy.copy(part.scheduler)
    _forget(new)
    _keep_rows(going_on, (~begin).nonzero()[:, 0])
    return [_Part(own[~begin], going_on), _Part(own[begin], new)]


def _forget(scheduler: Any) -> None:
    """As after `set_timesteps`, at the step that it is at; lists are replaced, so a shallow copy keeps its own."""
    scheduler.model_outputs = [None] * len(scheduler.model_outputs)
    scheduler.lower_order_nums = 0
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None
        scheduler.timestep_list = [None] * len(scheduler.timestep_list)


def _keep_rows(scheduler: Any, rows: Tensor) -> None:
    scheduler.model_outputs = [None if output is None else output[rows] for output in scheduler.model_outputs]
    if getattr(scheduler, "last_sample", None) is not None:
        scheduler.last_sample = scheduler.last_sample[rows]


def _of_rows(kwargs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """A step's arguments for some rows: a list of generators has one for each."""
    generator = kwargs.get("generator")
    if isinstance(generator, list):
        return {**kwargs, "generator": [generator[row] for row in rows.tolist()]}
    return dict(kwargs)
