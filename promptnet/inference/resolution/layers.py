"""Which layers a U-Net has, found from its structure: spatial convolutions and self-attention by name.

Depth counts halvings: 0 is the resolution of the latents. Names are those of the plain network; where peft has wrapped
a layer, its parts answer to that layer's name.
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from promptnet.inference.resolution.attention import has_added_keys, is_self_attention

# Inside these, tokens or kernels run over time and not over the image, or tokens are boxes beside the image.
_LEFT_ALONE = {
    "GatedSelfAttentionDense",
    "AnimateDiffTransformer3D",
    "MotionModules",
    "TemporalBasicTransformerBlock",
    "TemporalConvLayer",
    "TransformerTemporalModel",
}
_PEFT_PART = re.compile(r"\.(base_layer|lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.[^.]+)?)(?=\.|$)")
_ROOTS = ("down_blocks", "mid_block", "up_blocks")
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.|mid_block\.")


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a network.

    Args:
        name: of the plain layer within its network.
        depth: how often the latents were halved where it computes.
        modules: what computes it: the layer itself, and where peft has wrapped it, its adapters' first layers.
        wrappers: what peft has wrapped around it.
    """

    name: str
    depth: int
    modules: tuple[nn.Module, ...]
    wrappers: tuple[nn.Module, ...] = ()


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


def has_mid_block(network: nn.Module) -> bool:
    """Whether a U-Net has convolutions between its down and its up blocks; distilled ones may have none."""
    return any(name.startswith("mid_block.") for name in spatial_convolutions(uncompiled(network)))


def trained_latents(network: nn.Module) -> int:
    """The longer side of the latents that a U-Net's config says it was trained on; 64 where it says nothing."""
    config: Any = getattr(uncompiled(network), "config", {})
    size = config.get("sample_size") or 64
    return size if isinstance(size, int) else max(size)


def spatial_convolutions(network: nn.Module) -> dict[str, Layer]:
    """The 3x3 convolutions of all blocks, by name: resnets' two, and those of down- and upsamplers."""
    return spatial_layers(network)[0]


def spatial_attentions(network: nn.Module) -> dict[str, Layer]:
    """The self-attention layers over the image, by name."""
    return spatial_layers(network)[1]


def mixed_attentions(network: nn.Module) -> list[str]:
    """Names of the layers that attend to image and text at once, so that neither can be scaled alone."""
    return [name for name, module in _spatial_modules(network) if has_added_keys(module)]


def spatial_layers(network: nn.Module) -> tuple[dict[str, Layer], dict[str, Layer]]:
    """The convolutions and the attentions, in one walk: it is done in every adapted call."""
    num = num_depths(network)
    convolutions: dict[str, list[nn.Module]] = {}
    attentions: dict[str, list[nn.Module]] = {}
    wrappers: dict[str, list[nn.Module]] = {}
    for name, module in _spatial_modules(network):
        if "base_layer" in module._modules:
            wrappers.setdefault(plain_name(name), []).append(module)
        if isinstance(module, nn.Conv2d):
            if _is_plain_3x3(module):
                convolutions.setdefault(plain_name(name), []).append(module)
        elif is_self_attention(module):
            attentions[name] = [module]
    first, second = (
        {
            name: Layer(name, _depth(name, num), tuple(modules), tuple(wrappers.get(name, ())))
            for name, modules in found.items()
        }
        for found in (convolutions, attentions)
    )
    return first, second


def plain_name(name: str) -> str:
    """A module's name without the wrappers that peft puts around layers."""
    return _PEFT_PART.sub("", name)


def _spatial_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules within blocks, in the order of the network, leaving out those that run over time."""
    found: list[tuple[str, nn.Module]] = []
    for root in _ROOTS:
        blocks = network._modules.get(root)
        if blocks is not None:
            _walk(blocks, f"{root}.", found)
    return found


def _walk(module: nn.Module, prefix: str, found: list[tuple[str, nn.Module]]) -> None:
    for name, child in module._modules.items():
        if child is None or type(child).__name__ in _LEFT_ALONE:
            continue
        found.append((prefix + name, child))
        if child._modules:
            _walk(child, f"{prefix}{name}.", found)


def _is_plain_3x3(module: nn.Conv2d) -> bool:
    """Whether it pads its input to the same size, so that it can be re-dilated."""
    return module.kernel_size == (3, 3) and module.dilation == (1, 1) and module.padding in ((1, 1), "same")


def _depth(name: str, num: int) -> int:
    """Up blocks run from the deepest to the outermost; an upsampler computes on what it has enlarged."""
    match = _BLOCK.match(name)
    if match is None or match[1] is None:
        return num - 1
    index = int(match[2])
    if match[1] == "down_blocks":
        return index
    return max(0, num - 1 - index - (".upsamplers." in name))
