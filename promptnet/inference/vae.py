"""Tiles without seams: diffusers' own tiled decoding, with the whole image's statistics in every tile.

A decoder's group norms bring each input to mean 0 and variance 1. Tile by tile, a piece of plain background is brought
to the same contrast as an eye: colours jump from tile to tile, and no overlap hides that. Here one pass over latents
picked in even steps from the whole image, no more than one tile of them, says what every group norm is to subtract
and divide by; averaged latents would not do, as they are flatter than any tile.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat, nn

from promptnet.inference.tuning.customize import twin

Statistics = dict[nn.GroupNorm, tuple[Tensor, Tensor]]
"""Mean and variance (B, groups) of what each group norm is given."""


def is_tiled(vae: Any, latents: Tensor) -> bool:
    """Whether diffusers decodes latents (B, C, h, w) in tiles: after `vae.enable_tiling()`, if they are large."""
    return getattr(vae, "use_tiling", False) and max(latents.shape[-2:]) > vae.tile_latent_min_size


def decode_in_tiles(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) of unscaled latents (B, C, h, w), one after the other: memory is for tiles.

    Args:
        vae: an `AutoencoderKL` with tiling enabled; its own tile size and overlap. It is a twin of it that has the
            hooks: others may decode with the VAE meanwhile.
        latents: as `vae.decode` takes them.
    """
    vae, images = twin(vae), []
    for one in latents.split(1):
        with normalised_with(measured(vae, picked(one, vae.tile_latent_min_size))):
            images.append(vae.decode(one, return_dict=False)[0])
    return cat(images)


def picked(latents: Tensor, side: int) -> Tensor:
    """Latents (B, C, h, w) at even steps, the longer side `side` of them."""
    height, width = latents.shape[-2:]
    scale = side / max(height, width)
    return F.interpolate(latents, (max(1, round(scale * height)), max(1, round(scale * width))), mode="nearest-exact")


def measured(vae: Any, latents: Tensor) -> Statistics:
    """What the group norms of the decoder are given for these latents, which are decoded whole."""
    found: Statistics = {}

    def measure(norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        groups = _grouped(inputs[0], norm)
        found[norm] = groups.mean(-1), groups.var(-1, unbiased=False)

    with _hooked(vae.decoder, measure):
        vae.decode(latents, return_dict=False)
    return found


@contextmanager
def normalised_with(statistics: Statistics) -> Iterator[None]:
    """For the length of the block, these group norms subtract and divide by what they are told."""

    def normalise(norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        x = inputs[0]
        mean, variance = (each[..., None] for each in statistics[norm])  # (B, G, 1)
        y = ((_grouped(x, norm) - mean) * (variance + norm.eps).rsqrt()).reshape_as(x).to(x.dtype)
        shape = (-1, *[1] * (x.ndim - 2))
        return y * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else y

    with ExitStack() as stack:
        for norm in statistics:
            stack.enter_context(_hooked(norm, normalise))
        yield


def _grouped(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return x.float().reshape(len(x), norm.num_groups, -1)  # (B, G, C / G * h * w)


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    """The hook on every group norm in there, and nothing left of it afterwards."""
    handles = [each.register_forward_hook(hook) for each in module.modules() if isinstance(each, nn.GroupNorm)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
