"""What a call asks of layers, looked at from outside."""

from torch import nn

from promptnet.models.slots import _ASKED


def is_asked(layer: nn.Module) -> bool:
    """Whether the call that runs in this thread asks anything of this layer."""
    slots = [*layer._forward_hooks.values(), vars(layer).get("_conv_forward")]
    places = [place for slot in slots for place in getattr(slot, "places", ())]
    return any(place.key in (_ASKED.get() or {}) for place in places)
