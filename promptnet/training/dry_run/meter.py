"""Counting what a step takes, on tensors that have shapes and no data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class StepCounter(TorchDispatchMode):
    """Counts, inside the block, operations and the most bytes that were alive at one time among the tensors made there.

    Attention counts as the fused kernels of GPUs do it, which never hold its weights.

    Args:
        existing: tensors from before the block, weights above all; they do not count, nor do views of them.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.live_bytes = self.peak_bytes = 0
        storages = [tensor.untyped_storage() for tensor in existing]
        self._known: dict[int, Any] = {storage._cdata: storage for storage in storages}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=outputs)
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor.untyped_storage())
        return outputs

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        num_bytes = storage.nbytes()

        def gone(_: Any) -> None:
            self.live_bytes -= num_bytes
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Stands in for `scaled_dot_product_attention`."""
        return _FusedAttention.apply(self, query, key, value)


class _FusedAttention(torch.autograd.Function):
    """Attention's shapes and operations, forward and back, without anything of the size of its weights."""

    @staticmethod
    def forward(ctx: Any, meter: StepCounter, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        ctx.meter = meter
        ctx.save_for_backward(query, key, value)
        meter.flops += sdpa_flop_count(query.shape, key.shape, value.shape)
        return query.new_empty(*query.shape[:-1], value.shape[-1])  # (B, heads, T, width)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        ctx.meter.flops += sdpa_backward_flop_count(gradients[0].shape, query.shape, key.shape, value.shape)
        return None, torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def metered(existing: Iterable[torch.Tensor]) -> Iterator[StepCounter]:
    """Count what runs inside the block, beside tensors that are there before it."""
    with StepCounter(existing) as meter, patch.object(F, "scaled_dot_product_attention", meter.attention):
        yield meter
