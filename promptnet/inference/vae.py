"""Tiles without seams: large latents coded tile by tile, with the whole image's statistics in every tile.

A VAE's group norms bring each input to mean 0 and variance 1. Tile by tile, a piece of plain background is brought to
the same contrast as an eye: colours jump from tile to tile, and no overlap hides that. Here a first pass over tiles
adds up what every group norm is given, and in the second pass all tiles subtract and divide by the same numbers. Each
tile counts with its inner part alone: so every place of the image counts once, and a tile's own borders, where
convolutions see zeros in place of the neighbour, do not count. That holds at any ratio of the sides; latents thinned
out to fit one tile, change the more from place to place the longer the image is.

For the same reason tiles are spread evenly, without a narrow rest, and blended where both are away from their borders.
Switch, tile size and overlap are diffusers' own: `vae.enable_tiling()`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, cat, nn

from promptnet.models.twins import twin

Statistics = dict[nn.GroupNorm, tuple[Tensor, Tensor]]
"""Mean and variance (B, groups) of what each group norm is given."""


def is_tiled(vae: Any, latents: Tensor) -> bool:
    """Whether latents (B, C, h, w) are decoded in tiles: after `vae.enable_tiling()`, if they are large."""
    return getattr(vae, "use_tiling", False) and max(latents.shape[-2:]) > vae.tile_latent_min_size


def is_encoded_in_tiles(vae: Any, pixels: Tensor) -> bool:
    """The same of images (B, 3, H, W) to encode; sides between two latents are left to diffusers."""
    if not getattr(vae, "use_tiling", False) or any(side % _latent_px(vae) for side in pixels.shape[-2:]):
        return False
    return max(pixels.shape[-2:]) > vae.tile_latent_min_size * _latent_px(vae)


def decode_in_tiles(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) of unscaled latents (B, C, h, w), one after the other: memory is for tiles.

    Args:
        vae: an `AutoencoderKL` with tiling enabled; its own tile size and overlap. It is a twin of it that has the
            hooks: others may decode with the VAE meanwhile.
        latents: as `vae.decode` takes them.
    """
    vae = twin(vae)

    def decode(one: Tensor) -> Tensor:
        return vae.decode(one, return_dict=False)[0]

    tiles = _tiles(vae, *latents.shape[-2:])
    return cat([_in_tiles(vae.decoder, decode, one, tiles) for one in latents.split(1)])


def encode_in_tiles(vae: Any, pixels: Tensor) -> Tensor:
    """Unscaled latents (B, C, h, w), the mode of the posterior, of images (B, 3, H, W), one after the other.

    Args:
        vae: an `AutoencoderKL` with tiling enabled.
        pixels: as `vae.encode` takes them.
    """
    vae = twin(vae)
    unit = _latent_px(vae)

    def encode(one: Tensor) -> Tensor:
        return vae.encode(one).latent_dist.mode()

    height, width = (side_px // unit for side_px in pixels.shape[-2:])
    tiles = [(rows.scaled(unit), columns.scaled(unit)) for rows, columns in _tiles(vae, height, width)]
    return cat([_in_tiles(vae.encoder, encode, one, tiles) for one in pixels.split(1)])


def _latent_px(vae: Any) -> int:
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


@dataclass(frozen=True)
class Interval:
    """One tile's extent along a side, and the part of it that counts."""

    start: int
    stop: int
    inner_start: int
    inner_stop: int

    def scaled(self, unit: int) -> "Interval":
        return Interval(*(unit * place for place in (self.start, self.stop, self.inner_start, self.inner_stop)))

    def inner_of(self, size: int) -> slice:
        """The inner part where the tile has `size` places."""
        scale = size / (self.stop - self.start)
        return slice(round((self.inner_start - self.start) * scale), round((self.inner_stop - self.start) * scale))

    def placed(self, scale: float) -> slice:
        """The tile where the image has `scale` times as many places."""
        return slice(round(self.start * scale), round(self.stop * scale))


Tile = tuple[Interval, Interval]
"""Rows and columns."""


def _tiles(vae: Any, height: int, width: int) -> list[Tile]:
    """The tiles of latents of this size."""
    side = vae.tile_latent_min_size
    border = min(round(side * vae.tile_overlap_factor / 2), (side - 1) // 2)
    return list(product(intervals(height, side, border), intervals(width, side, border)))


def intervals(size: int, side: int, border: int) -> list[Interval]:
    """Tiles of `side` places, evenly spread, whose inner parts cover `size` places once.

    Args:
        size: of the image.
        side: of a tile.
        border: places next to a tile's ends that count only where the image ends too.
    """
    if size <= side:
        return [Interval(0, size, 0, size)]
    count = -(-(size - 2 * border) // (side - 2 * border))
    starts = [round((size - side) * index / (count - 1)) for index in range(count)]
    cuts = [0, *((one + side + other) // 2 for one, other in pairwise(starts)), size]
    return [Interval(start, start + side, *inner) for start, inner in zip(starts, pairwise(cuts), strict=True)]


def _in_tiles(network: nn.Module, code: Callable[[Tensor], Tensor], x: Tensor, tiles: list[Tile]) -> Tensor:
    """One image coded tile by tile and put together."""
    total = weights = x.new_zeros(())
    with normalised_with(measured(network, code, x, tiles)):
        for rows, columns in tiles:
            y = code(x[..., rows.start : rows.stop, columns.start : columns.stop])
            scale = y.shape[-1] / (columns.stop - columns.start)
            if not total.ndim:
                sides = [round(side * scale) for side in x.shape[-2:]]
                total, weights = y.new_zeros(*y.shape[:2], *sides), y.new_zeros(sides)
            here = (..., rows.placed(scale), columns.placed(scale))
            down = _ramp(rows, y.shape[-2], x.shape[-2]).to(y)
            weight = down[:, None] * _ramp(columns, y.shape[-1], x.shape[-1]).to(y)
            total[here] += weight * y
            weights[here] += weight
    return total / weights


def _ramp(tile: Interval, size: int, image: int) -> Tensor:
    """Weights (size,) of a tile's places: 1, falling to 0 halfway between where it counts and its end."""
    places = (torch.arange(size) + 0.5) / size * (tile.stop - tile.start) + tile.start
    left, right = tile.inner_start - tile.start, tile.stop - tile.inner_stop
    ramp = torch.ones(size)
    if left and tile.start > 0:
        ramp = torch.minimum(ramp, (places - tile.start - left / 2) / left)
    if right and tile.stop < image:
        ramp = torch.minimum(ramp, (tile.stop - right / 2 - places) / right)
    return ramp.clamp_min(0)


def measured(network: nn.Module, code: Callable[[Tensor], Tensor], x: Tensor, tiles: Iterable[Tile]) -> Statistics:
    """What the group norms of a network are given for all tiles of one image or its latents together.

    Each tile is normalised by its own inner part, so the numbers of deeper layers are near to those of the whole
    image, not equal.

    Args:
        network: the VAE's decoder or encoder.
        code: decodes or encodes a tile.
        x: (1, C, h, w).
        tiles: whose inner parts cover x once.
    """
    found: dict[nn.GroupNorm, list[tuple[int, Tensor, Tensor]]] = {norm: [] for norm in _group_norms(network)}
    if not found:
        return {}
    for rows, columns in tiles:

        def add(norm: nn.GroupNorm, given: Tensor, rows: Interval = rows, columns: Interval = columns) -> Tensor:
            groups = _grouped(_inner(given, rows, columns), norm)
            moments = groups.mean(-1), groups.var(-1, unbiased=False)
            found[norm].append((groups.shape[-1], *moments))
            return _normalised(norm, given, *moments)

        with _replacing(found, add):
            code(x[..., rows.start : rows.stop, columns.start : columns.stop])
    return {norm: _pooled(parts) for norm, parts in found.items() if parts}


def _pooled(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, G) of all parts together, each given as its count, mean and variance."""
    total = sum(count for count, _, _ in parts)
    mean = torch.stack([mean * (count / total) for count, mean, _ in parts]).sum(0)
    spread = [(variance + (own - mean).square()) * (count / total) for count, own, variance in parts]
    return mean, torch.stack(spread).sum(0)


@contextmanager
def normalised_with(statistics: Statistics) -> Iterator[None]:
    """For the length of the block, in this thread, these group norms subtract and divide by what they are told."""

    def normalise(norm: nn.GroupNorm, given: Tensor) -> Tensor:
        return _normalised(norm, given, *statistics[norm])

    with _replacing(statistics, normalise):
        yield


def _normalised(norm: nn.GroupNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """x (B, C, ...) with mean and variance (B, G) of its groups given: per channel one factor and one summand."""
    each = norm.num_channels // norm.num_groups
    factor = (variance + norm.eps).rsqrt().repeat_interleave(each, dim=1)  # (B, C)
    summand = -mean.repeat_interleave(each, dim=1) * factor
    if norm.affine:
        factor, summand = factor * norm.weight.float(), summand * norm.weight.float() + norm.bias.float()
    factor, summand = (value.reshape(*value.shape, *[1] * (x.ndim - 2)) for value in (factor, summand))
    return torch.addcmul(summand, x.float(), factor).to(x.dtype)


def _inner(x: Tensor, rows: Interval, columns: Interval) -> Tensor:
    """The part of a layer's input (B, C, h, w), or (B, C, h * w) as attention has it, that counts."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if x.ndim == 3:
        scale = (x.shape[-1] / (height * width)) ** 0.5
        x = x.reshape(*x.shape[:2], round(height * scale), round(width * scale))
    return x[..., rows.inner_of(x.shape[-2]), columns.inner_of(x.shape[-1])]


def _grouped(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return x.float().reshape(len(x), norm.num_groups, -1)  # (B, G, C / G * h * w)


def _group_norms(network: nn.Module) -> list[nn.GroupNorm]:
    return [each for each in network.modules() if isinstance(each, nn.GroupNorm)]


@contextmanager
def _replacing(norms: Iterable[nn.GroupNorm], output: Callable[[nn.GroupNorm, Tensor], Tensor]) -> Iterator[None]:
    """These group norms' outputs, for the length of the block and in this thread; nothing is left of it afterwards."""
    owner = get_ident()

    def hook(norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor | None:
        return output(norm, inputs[0]) if get_ident() == owner else None

    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_hook(hook).remove)
        yield
