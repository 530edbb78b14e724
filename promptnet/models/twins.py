"""Copies of a network's modules that share its weights: what a call may change without changing the network."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from promptnet.models.slots import Slot

_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def twin(network: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """A copy of the modules in evaluation mode, whose weights are the network's and want no gradients.

    Args:
        network: anything; from inside `torch.compile`'s wrapper.
        dtype: floating-point weights are copies in this type, if it is another.
    """
    network = getattr(network, "_orig_mod", network)
    memo: dict[int, Any] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        memo[id(tensor)] = _shared(tensor, dtype)
    for shared in _shared_objects(network):
        memo[id(shared)] = shared
    return copy.deepcopy(network, memo).eval()


def _shared(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    values = tensor.detach()
    if dtype is not None and tensor.is_floating_point():
        values = values.to(dtype)
    if not isinstance(tensor, nn.Parameter):
        return values
    return nn.Parameter(values, requires_grad=False) if tensor.requires_grad or values.dtype != tensor.dtype else tensor


def _shared_objects(network: nn.Module) -> Iterator[Any]:
    """Hooks of others, which may hold anything: they are called with the module that runs."""
    for module in network.modules():
        for name in _HOOKS:
            yield from (hook for hook in (getattr(module, name, None) or {}).values() if not isinstance(hook, Slot))
        if (offloading := vars(module).get("_hf_hook")) is not None:
            yield offloading


def frozen(network: nn.Module, *, for_gradients: bool = True) -> Any:
    """The network, if it is in evaluation mode and none of its weights wants a gradient; otherwise a twin that is.

    Args:
        network: anything.
        for_gradients: whether a graph will be made of its calls; if not, it is no matter what its weights want.
    """
    is_free = any(module.training for module in network.modules())
    is_free = is_free or (for_gradients and any(weight.requires_grad for weight in network.parameters()))
    return twin(network) if is_free else network
