"""Which layers a U-Net has, found from its structure: spatial convolutions and self-attention by name.

Depth counts halvings: 0 is the resolution of the latents. Names are those of the plain network; where peft has wrapped
a layer, its parts answer to that layer's name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from promptnet.inference.resolution.attention import is_self_attention

# Inside these, tokens or kernels run over time and not over the picture.
_TEMPORAL = {"TransformerTemporalModel", "AnimateDiffTransformer3D", "MotionModules", "TemporalConvLayer"}
_PEFT_PART = re.compile(r"\.(base_layer|lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.[^.]+)?)(?=\.|$)")
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.|mid_block\.")


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a network.

    Args:
        name: of the plain layer within its network.
        depth: how often the latents were halved where it computes.
        modules: what computes it: the layer itself, and where peft has wrapped it, its adapters' first layers.
    """

    name: str
    depth: int
    modules: tuple[nn.Module, ...]


def uncompiled(network: Any) -> nn.Module:
    """The network itself, from inside `torch.compile`'s wrapper."""
    return getattr(network, "_orig_mod", network)


def num_depths(network: nn.Module) -> int:
    """How many resolutions a U-Net or a ControlNet has.

    Raises:
        ValueError: it has no down blocks.
    """
    blocks: Any = getattr(network, "down_blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(
            f"{type(network).__name__} has no down_blocks: give a diffusers U-Net, or a pipeline with one."
        )
    return len(blocks)


def spatial_convolutions(network: nn.Module) -> dict[str, Layer]:
    """The 3x3 convolutions of all blocks, by name: resnets' two, and those of down- and upsamplers."""
    num = num_depths(network)
    found: dict[str, list[nn.Module]] = {}
    for name, module in _spatial_modules(network):
        if isinstance(module, nn.Conv2d) and _is_plain_3x3(module):
            found.setdefault(plain_name(name), []).append(module)
    return {name: Layer(name, _depth(name, num), tuple(modules)) for name, modules in found.items()}


def spatial_attentions(network: nn.Module) -> dict[str, Layer]:
    """The self-attention layers over the picture, by name."""
    num = num_depths(network)
    return {
        name: Layer(name, _depth(name, num), (module,))
        for name, module in _spatial_modules(network)
        if is_self_attention(module)
    }


def plain_name(name: str) -> str:
    """A module's name without the wrappers that peft puts around layers."""
    return _PEFT_PART.sub("", name)


def _spatial_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules within blocks, in the order of the network, leaving out those that run over time."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child).__name__ in _TEMPORAL:
            continue
        if _BLOCK.match(path):
            yield path, child
        yield from _spatial_modules(child, f"{path}.")


def _is_plain_3x3(module: nn.Conv2d) -> bool:
    """Whether it pads its input to the same size, so that it can be re-dilated."""
    return (
        module.kernel_size == (3, 3)
        and module.dilation == (1, 1)
        and module.padding in ((1, 1), "same")
        and module.padding_mode == "zeros"
    )


def _depth(name: str, num: int) -> int:
    """Up blocks run from the deepest to the outermost; an upsampler computes on what it has enlarged."""
    match = _BLOCK.match(name)
    if match is None or match[1] is None:
        return num - 1
    index = int(match[2])
    if match[1] == "down_blocks":
        return index
    return max(0, num - 1 - index - (".upsamplers." in name))
