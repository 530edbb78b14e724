"""Who calls an adapted network, and what happens around the call.

A network may be a part of several pipelines at once, some of them made long after it was adapted, and be called from
many threads. So a call is asked itself: the pipeline that makes it is the one on the stack of its thread. It knows its
timesteps, and whether it guides.
"""

import functools
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from promptnet.inference.resolution.damped_batch import damped_output, first_half
from promptnet.inference.resolution.layers import uncompiled
from promptnet.inference.sampling.own_call import running_call

_HANDLES, _HOOKS = "_promptnet_resolution", "_promptnet_resolution_hooks"


class Handle(Protocol):
    """What a `ResolutionHandle` offers to the calls of its networks."""

    is_active: bool
    network: Any
    adapted: Any
    damped: Any

    def remove(self) -> None:
        """Leave the networks as they were."""
        ...

    def check(self, network: nn.Module, sample: Tensor) -> None:
        """Raise if the call cannot be adapted."""
        ...

    def check_caller(self, caller: Any) -> None:
        """Raise if the calling pipeline cannot be damped."""
        ...

    def share(self, timestep: Any, caller: Any) -> float | None:
        """Return how far the call's steps have come, 0 to 1; None where nobody says it."""
        ...

    def acts_as_unet(self, network: nn.Module) -> bool:
        """Return whether the network is the handle's U-Net."""
        ...

    def is_damped(self, share: float | None, caller: Any, sample: Tensor) -> bool:
        """Return whether this call's guidance is damped."""
        ...

    def fits(self, sample: Tensor) -> bool:
        """Return whether the handle is for latents of this size."""
        ...


@dataclass(frozen=True)
class Caller:
    """The pipeline that calls a network, and the scheduler of this call."""

    pipe: Any
    scheduler: Any

    @property
    def unet(self) -> nn.Module | None:
        """Not compiled."""
        return uncompiled(self.pipe.unet)


def caller_of(network: nn.Module) -> Caller | None:
    """The pipeline whose U-Net or ControlNet is being called in this thread; None in a loop of somebody's own."""
    call = running_call()
    if call is not None and any(part is network for part in called_networks(call.pipe)):
        return Caller(call.pipe, call.scheduler)
    for owner in _owners_of_frames():
        if any(part is network for part in called_networks(owner)):
            return Caller(owner, vars(owner).get("scheduler"))
    return None


def pipeline_on_the_stack() -> Any:
    """The pipeline whose method runs in this thread, the innermost one; None if there is none."""
    return next(_owners_of_frames(), None)


def is_called_by(name: str) -> bool:
    """Whether a function of this name runs in this thread."""
    return any(frame.f_code.co_name == name for frame in _frames())


def _owners_of_frames() -> Iterator[Any]:
    for frame in _frames():
        if "self" in frame.f_code.co_varnames:
            owner = frame.f_locals.get("self")
            if "unet" in getattr(owner, "__dict__", ()):
                yield owner


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def called_networks(pipe: Any) -> list[nn.Module]:
    """A pipeline's U-Net and ControlNets, from inside `torch.compile`'s wrappers."""
    unet = uncompiled(getattr(pipe, "unet", None))
    return [*([unet] if isinstance(unet, nn.Module) else []), *control_networks(pipe)]


def control_networks(pipe: Any) -> list[nn.Module]:
    """A pipeline's ControlNets."""
    controlnet = getattr(pipe, "controlnet", None)
    networks = [uncompiled(network) for network in getattr(controlnet, "nets", [controlnet])]
    return [network for network in networks if isinstance(getattr(network, "down_blocks", None), nn.ModuleList)]


# -- hooks ------------------------------------------------------------------------------------------------------------


def handles_of(network: nn.Module) -> list[Handle]:
    """Those at work on a network, or on the network that it is a copy of."""
    return [handle for handle in vars(network).get(_HANDLES, ()) if handle.is_active]


def attach(network: nn.Module, handle: Handle) -> None:
    """Let a handle act on the calls of a network."""
    handles = vars(network).setdefault(_HANDLES, [])
    handles[:] = [*(each for each in handles if each.is_active), handle]
    if _HOOKS not in vars(network):
        before, after = _hooks()
        vars(network)[_HOOKS] = [
            network.register_forward_pre_hook(before, with_kwargs=True),
            network.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]


def detach(network: nn.Module, handle: Handle) -> None:
    """Undo it, also for a call of this thread that was interrupted."""
    _leave(network)
    handles = vars(network).get(_HANDLES, [])
    handles[:] = [each for each in handles if each.is_active and each is not handle]
    if not handles:
        vars(network).pop(_HANDLES, None)
        for hook in vars(network).pop(_HOOKS, ()):
            hook.remove()


@functools.cache
def _hooks() -> tuple[Any, Any]:
    """The same for all networks, so that a copied network's are its own. Compiled code stays around them."""
    return torch.compiler.disable(_before), torch.compiler.disable(_after)


@dataclass(eq=False)
class _Open:
    """A call between its two hooks."""

    network: nn.Module
    handle: Handle
    stack: ExitStack
    share: float | None
    caller: Caller | None
    is_damped: bool


class _Thread(threading.local):
    """Calls that are open in this thread, and the network that a damped pass calls again."""

    def __init__(self) -> None:
        self.calls: list[_Open] = []
        self.again: nn.Module | None = None


_THREAD = _Thread()


def _before(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _THREAD.again is network:
        return
    _leave(network)
    caller, sample = caller_of(network), argument(0, "sample", args, kwargs)
    handle = _handle_for(network, caller, sample)
    if handle is None:
        return
    handle.check(network, sample)
    share = handle.share(argument(1, "timestep", args, kwargs), caller)
    is_unet = handle.acts_as_unet(network)
    is_damped = is_unet and handle.is_damped(share, caller, sample)
    if is_unet and caller is not None:
        handle.check_caller(caller)
    stack = ExitStack()
    stack.enter_context(handle.adapted.at(network, share))
    _THREAD.calls.append(_Open(network, handle, stack, share, caller, is_damped))


def _handle_for(network: nn.Module, caller: Caller | None, sample: Tensor) -> Handle | None:
    """A U-Net's own; a ControlNet's is that of the U-Net it is called for, or the one for this size."""
    handles = handles_of(network)
    own = [handle for handle in handles if handle.acts_as_unet(network)]
    if own or not handles:
        return own[-1] if own else None
    if caller is not None and caller.unet is not None:
        found = handles_of(caller.unet)
        return found[-1] if found else None
    fitting = [handle for handle in handles if handle.fits(sample)]
    return (fitting or handles)[-1]


def _after(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    if _THREAD.again is network or not _THREAD.calls or _THREAD.calls[-1].network is not network:
        return None
    call = _THREAD.calls.pop()
    if output is None:  # the call failed: undo, and let its own error speak
        call.stack.__exit__(RuntimeError, RuntimeError("failed"), None)
        return None
    call.stack.close()
    return damped_output(output, _damped_pass(call, args, kwargs)) if call.is_damped else None


def _leave(network: nn.Module) -> None:
    """Undo what an interrupted call of this network has left in this thread."""
    while any(call.network is network for call in _THREAD.calls):
        _THREAD.calls.pop().stack.__exit__(RuntimeError, RuntimeError("interrupted"), None)


def _damped_pass(call: _Open, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The unconditional half of the batch in the damped mode."""
    num_rows = len(argument(0, "sample", args, kwargs))
    again, _THREAD.again = _THREAD.again, call.network
    try:
        with call.handle.damped.at(call.network, call.share):
            network = call.network if call.caller is None else call.caller.pipe.unet  # perhaps compiled
            return network(*first_half(args, num_rows), **first_half(kwargs, num_rows))
    finally:
        _THREAD.again = again


def argument(index: int, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Of a call, by its place or its name."""
    return args[index] if len(args) > index else kwargs[name]
