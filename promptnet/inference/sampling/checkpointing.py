"""Gradient checkpointing that keeps nothing of a call but its input.

`torch.utils.checkpoint` keeps, for each call, every tensor that the call closes over and the whole graph of the call
with its nodes, of which a U-Net has thousands: megabytes a step that grow with their number. Here a call is one node of
the graph, and what it keeps is `x`. Its gradients are those of the call itself, computed anew when they are asked for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Tensor], Tensor]


def checkpointed(call: Call, x: Tensor) -> Tensor:
    """`call(x)`, to be computed again in the backward pass.

    Gradients reach x and every leaf that `call` reads, whatever it holds it in. The call must give the same again: no
    dropout, no noise of its own. It is not differentiable twice.
    """
    if not torch.is_grad_enabled():
        return call(x)
    with torch.autograd.graph.saved_tensors_hooks(_forget, _forgotten):
        cut = x.detach().requires_grad_(x.requires_grad)
        output = call(cut)
    leaves = [leaf for leaf in leaves_of(output) if leaf is not cut]
    output = output.detach()
    if not leaves and not x.requires_grad:
        return output
    return _Checkpointed.apply(call, _precision(x), output, x, *leaves)  # pyright: ignore[reportReturnType]


def leaves_of(output: Tensor) -> list[Tensor]:
    """The leaves that a tensor's gradient would reach."""
    found, seen, waiting = [], set(), [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
        if hasattr(node, "variable"):
            found.append(node.variable)
    return found


class _Checkpointed(torch.autograd.Function):
    """The output is known; the node is for the way back."""

    @staticmethod
    def forward(ctx: Any, call: Call, precision: Any, output: Tensor, x: Tensor, *leaves: Tensor) -> Tensor:
        ctx.call, ctx.precision, ctx.leaves = call, precision, leaves
        ctx.save_for_backward(x)
        return output.view_as(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needs_x = ctx.needs_input_grad[3]
        x = ctx.saved_tensors[0].detach().requires_grad_(needs_x)
        with torch.enable_grad(), ctx.precision():
            output = ctx.call(x)
        inputs = [x, *ctx.leaves] if needs_x else list(ctx.leaves)
        # What the leaves went through outside of the call is shared by all calls, and must outlive this one.
        found = torch.autograd.grad(output, inputs, gradient, retain_graph=True, allow_unused=True)
        return None, None, None, *(found if needs_x else (None, *found))


def _precision(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """The mixed precision of this moment; the backward pass runs outside of it."""
    device = x.device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)


def _forget(tensor: Tensor) -> None:
    return None


def _forgotten(_: None) -> Tensor:
    raise AssertionError("a recomputed call's first graph is for finding its leaves only")
