"""What a call asks of single layers of a network that many calls share, in any number of threads.

A layer gets a slot once, and keeps it: a forward hook, or the convolution below `forward`. A slot holds nothing of any
call. It looks into one context variable, where the call that runs in this thread has put what it asks, by layer; where
nothing is asked, the layer is exactly the plain one.

Other ways were weighed. Arguments of the call (`cross_attention_kwargs`) reach attention processors only: no
convolution, no embedding, no processor that somebody else has installed. Hooks that come and go with a call act on
every caller. `threading.local` is read by compiled code once, when it is made; a context variable is guarded, so that
whole graphs see what each call asks, and tensors in it are inputs of the graph. Copies of a network get slots of their
own, so that what is asked of one is not asked of the other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

_ASKED: ContextVar[Mapping[str, tuple[Any, ...]] | None] = ContextVar("promptnet_asked", default=None)
_NUMBERS = count()
_INSTALLING = RLock()  # one layer, one slot; and ids of hooks are not safe from threads


class Place:
    """What slots look for in a call, by its key. A copied network's places are others than the network's."""

    def __init__(self) -> None:
        self.key = f"place {next(_NUMBERS)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Place":
        return Place()

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, ()


class Slot:
    """A forward hook: asked actions (layer, args, output) -> output, one after the other.

    Its places are its own and those that it shares with other layers. Layers with one shared place and nothing asked of
    their own share compiled code, too.
    """

    def __init__(self, *places: Place) -> None:
        self.places = places

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        asked = _ASKED.get()
        if asked is None:
            return output
        for place in self.places:
            for action in asked.get(place.key, ()):
                output = action(layer, args, output)
        return output


class ConvolutionSlot:
    """What stands for a convolution's `_conv_forward`: below `forward`, so that what wraps a layer stays around it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution, self.places = convolution, (Place(),)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked = _ASKED.get()
        if asked is not None:
            for action in asked.get(self.places[0].key, ()):
                return action(self.convolution, x, weight, bias)
        return type(self.convolution)._conv_forward(self.convolution, x, weight, bias)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConvolutionSlot, (self.convolution,)


def slot_of(layer: nn.Module, *shared: Place) -> Slot:
    """The slot of a layer, made if it has none.

    Args:
        layer: whose outputs are to be changed.
        shared: places that the slot is to look at beside its own.
    """
    with _INSTALLING:
        slot = next((hook for hook in layer._forward_hooks.values() if isinstance(hook, Slot)), None)
        if slot is None:
            slot = Slot(Place())
            layer.register_forward_hook(slot)
            # Compiled code does not look at hooks. It does look whether a layer has a forward of its own.
            vars(layer).setdefault("forward", layer.forward)
        if missing := [place for place in shared if place not in slot.places]:
            slot.places = (*slot.places, *missing)
        return slot


def convolution_slot_of(convolution: nn.Conv2d) -> ConvolutionSlot | None:
    """The slot of a convolution, made if it has none; None where somebody else's convolution stands in its place."""
    with _INSTALLING:
        found = vars(convolution).get("_conv_forward")
        if isinstance(found, ConvolutionSlot) and found.convolution is convolution:
            return found
        if found is not None:
            return None
        slot = ConvolutionSlot(convolution)
        vars(convolution)["_conv_forward"] = slot
        return slot


def shared_place(network: nn.Module, name: str) -> Place:
    """A place that many layers of one network look at, by a name of what is asked there."""
    with _INSTALLING:
        places: dict[str, Place] = vars(network).setdefault("_promptnet_places", {})
        return places.setdefault(name, Place())


@contextmanager
def asking(actions: Mapping[str, Any]) -> Iterator[None]:
    """For the length of the block, in this thread, layers do these; nested blocks add up.

    Backward passes inside the block run in this thread, as layers that are recomputed must see the same.

    Args:
        actions: by the key of a place.
    """
    before = _ASKED.get()
    asked = dict(before or {})
    for key, action in actions.items():
        asked[key] = (*asked.get(key, ()), action)
    _ASKED.set(asked)
    multithreaded = torch.autograd.is_multithreading_enabled()
    try:
        with torch.autograd.set_multithreading_enabled(multithreaded and not torch.is_grad_enabled()):
            yield
    finally:
        _ASKED.set(before)
