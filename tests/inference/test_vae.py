from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.images.crop import to_pixels
from promptnet.inference.references import decode_latents, encode_pixels
from promptnet.inference.vae import (
    _inner,
    _pooled,
    _tiles,
    decode_in_tiles,
    encode_in_tiles,
    intervals,
    is_encoded_in_tiles,
    is_tiled,
    measured,
    normalised_with,
)

TILE = 8
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.fixture
def vae() -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 2 * TILE,
        "mid_block_add_attention": False,
    }
    made = AutoencoderKL(**config).eval()
    assert made.tile_latent_min_size == TILE
    made.enable_tiling()
    return made.requires_grad_(False)


@pytest.fixture
def embedded_vae() -> Any:
    vae = AutoencoderKL.from_pretrained(CHECKPOINTS / "tiny" / "vae", torch_dtype=torch.float32)
    vae.enable_tiling()
    return vae


def uneven(height: int = 24, width: int = 32, rows: int = 1) -> torch.Tensor:
    """Busy on the left, plain on the right: what makes tiles differ."""
    latents = torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(1))
    return latents * torch.linspace(2, 0.02, width) + torch.linspace(-1, 1, width)


def avatar_pixels(number: int, size_px: int) -> torch.Tensor:
    """(N, 3, S, S), in [-1, 1]."""
    avatars = [sample_avatar(0, index, "validation") for index in range(number)]
    return torch.stack([to_pixels(render_avatar(avatar, size_px)) for avatar in avatars])


def whole(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    vae.disable_tiling()
    image = vae.decode(latents).sample
    vae.enable_tiling()
    return image


def measured_decoder(vae: Any, latents: torch.Tensor) -> Any:
    return measured(
        vae.decoder, lambda one: vae.decode(one, return_dict=False)[0], latents, _tiles(vae, *latents.shape[-2:])
    )


def test_large_latents_alone_are_tiled_and_only_when_told(vae: Any) -> None:
    assert is_tiled(vae, uneven())
    assert not is_tiled(vae, uneven(TILE, TILE))
    vae.disable_tiling()
    assert not is_tiled(vae, uneven())


def test_tiles_are_much_nearer_to_the_whole_image_than_diffusers_alone(embedded_vae: Any) -> None:
    """On avatars at three times the trained size, most of which is plain background."""
    with torch.no_grad():
        latents = embedded_vae.encode(avatar_pixels(2, 192)).latent_dist.mode()
        expected = whole(embedded_vae, latents)
        ours = (decode_in_tiles(embedded_vae, latents) - expected).abs().mean()
        theirs = (embedded_vae.decode(latents).sample - expected).abs().mean()
    assert ours < 0.6 * theirs


def test_no_steps_show_where_tiles_meet(embedded_vae: Any) -> None:
    """What tiles change of the step from a pixel to the next, across their borders against elsewhere."""
    with torch.no_grad():
        latents = embedded_vae.encode(avatar_pixels(2, 192)).latent_dist.mode()
        expected = whole(embedded_vae, latents)
        found = steps_at_borders(embedded_vae, decode_in_tiles(embedded_vae, latents) - expected)
        embedded_vae.tile_overlap_factor = 0
        abutting = steps_at_borders(embedded_vae, decode_in_tiles(embedded_vae, latents) - expected)
    assert found < 1.5
    assert abutting > 4, "the measure sees seams"


def steps_at_borders(vae: Any, change: torch.Tensor) -> float:
    """Mean absolute steps along both sides, where tiles meet, begin or end over those elsewhere."""
    size_px = change.shape[-1]
    tiles = {rows for rows, _ in _tiles(vae, size_px // 4, size_px // 4)}
    at = {4 * place for tile in tiles for place in (tile.start, tile.stop, tile.inner_stop)} - {0, size_px}
    mask = torch.zeros(size_px - 1, dtype=torch.bool)
    mask[[place - 1 for place in at]] = True
    steps = torch.cat([change.diff(dim=side).abs().transpose(side, -1).flatten(0, -2).mean(0) for side in (-1, -2)])
    return float(steps[mask.repeat(2)].mean() / steps[~mask.repeat(2)].mean())


def test_with_its_own_statistics_a_image_is_decoded_as_it_is(vae: Any) -> None:
    latents = uneven(TILE, TILE)
    with normalised_with(measured_decoder(vae, latents)):
        again = vae.decode(latents).sample
    torch.testing.assert_close(again, vae.decode(latents).sample, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_in_the_decoder(vae: Any) -> None:
    latents = uneven()
    before = whole(vae, latents)
    decode_in_tiles(vae, latents)
    vae.decoder.conv_out.register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        decode_in_tiles(vae, latents)
    vae.decoder.conv_out._forward_pre_hooks.clear()
    assert torch.equal(whole(vae, latents), before)
    assert not any(module._forward_hooks for module in vae.modules())


def _fail(*_: Any) -> None:
    raise RuntimeError("on purpose")


def test_rows_of_a_batch_are_what_they_are_alone(vae: Any) -> None:
    latents = uneven(rows=2)
    vae.enable_slicing()
    both = decode_in_tiles(vae, latents)
    torch.testing.assert_close(both[1:], decode_in_tiles(vae, latents[1:]))


def test_decode_latents_takes_tiles_where_the_vae_is_told_to(vae: Any) -> None:
    latents = uneven()
    unscaled = latents / vae.config.scaling_factor
    torch.testing.assert_close(decode_latents(vae, latents), decode_in_tiles(vae, unscaled))


def test_inner_parts_cover_every_place_once_and_keep_off_inner_borders() -> None:
    for size in range(1, 60):
        places: list[int] = []
        for each in intervals(size, TILE, 1):
            assert each.stop - each.start == min(size, TILE)
            assert each.inner_start - each.start >= (each.start > 0)
            assert each.stop - each.inner_stop >= (each.stop < size)
            places += range(each.inner_start, each.inner_stop)
        assert places == list(range(size))


def test_pooled_moments_are_those_of_all_values() -> None:
    x = torch.randn(2, 3, 10) * 4 + 100
    parts = [(part.shape[-1], part.mean(-1), part.var(-1, unbiased=False)) for part in (x[..., :3], x[..., 3:])]
    mean, variance = _pooled(parts)
    torch.testing.assert_close(mean, x.mean(-1))
    torch.testing.assert_close(variance, x.var(-1, unbiased=False))


SIZES_PX = ((64, 128), (64, 512), (512, 64), (64, 1024), (256, 64), (68, 260), (132, 72), (100, 336), (192, 192))


def scenes(height_px: int, width_px: int) -> dict[str, torch.Tensor]:
    """Three avatars, each again and again; one stretched, different ones side by side, one beside plain colour."""
    avatars = avatar_pixels(8, 64).split(1)
    repeats = -(-height_px // 64), -(-width_px // 64)
    many = [avatars[i % 8] for i in range(repeats[0] * repeats[1])]
    rows = [torch.cat(many[i * repeats[1] : (i + 1) * repeats[1]], 3) for i in range(repeats[0])]
    found = {
        "repeated": torch.cat(avatars[:3]).repeat(1, 1, *repeats),
        "stretched": F.interpolate(avatars[1], (height_px, width_px), mode="bilinear"),
        "people": torch.cat(rows, 2),
        "plain": F.pad(avatars[2], (0, 64 * repeats[1] - 64, 0, 64 * repeats[0] - 64), value=0.6),
    }
    return {name: scene[..., :height_px, :width_px] for name, scene in found.items()}


LARGE_PX = 32_000  # in area: above it a case takes ten seconds


@pytest.mark.parametrize(
    "size_px",
    [pytest.param(size, marks=[pytest.mark.slow] if size[0] * size[1] > LARGE_PX else []) for size in SIZES_PX],
    ids=str,
)
@torch.no_grad()
def test_at_any_ratio_tiles_are_as_near_as_diffusers_at_least(embedded_vae: Any, size_px: tuple[int, int]) -> None:
    """Row 1 of the faults: the statistics of wide images came from an image as low as one latent."""
    for name, pixels in scenes(*size_px).items():
        embedded_vae.disable_tiling()
        latents = embedded_vae.encode(pixels).latent_dist.mode()
        expected = embedded_vae.decode(latents).sample
        embedded_vae.enable_tiling()
        for ours, theirs, whole in (
            (decode_in_tiles(embedded_vae, latents), embedded_vae.decode(latents).sample, expected),
            (encode_in_tiles(embedded_vae, pixels), embedded_vae.encode(pixels).latent_dist.mode(), latents),
        ):
            assert (ours - whole).abs().mean() <= (theirs - whole).abs().mean(), name


def test_encode_pixels_takes_tiles_where_the_vae_is_told_to(vae: Any) -> None:
    pixels = torch.rand(2, 3, 48, 16) * 2 - 1
    assert is_encoded_in_tiles(vae, pixels)
    assert not is_encoded_in_tiles(vae, pixels[..., : 2 * TILE, :])
    expected = encode_in_tiles(vae, pixels) * vae.config.scaling_factor
    torch.testing.assert_close(encode_pixels(vae, pixels), expected)
    assert (expected - vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).abs().max() > 1e-4


def test_attention_of_the_middle_counts_its_inner_part_too() -> None:
    """Its group norm is given (B, C, h * w)."""
    x = torch.randn(1, 4, 8, 8)
    rows, columns = intervals(12, 8, 1)[0], intervals(8, 8, 1)[0]
    inner = _inner(x.flatten(2), rows, columns)
    assert torch.equal(inner, _inner(x, rows, columns))
    assert inner.shape[-2:] == (6, 8)


def test_another_threads_images_are_not_normalised_with_these_statistics(vae: Any) -> None:
    latents, other = uneven(), uneven(TILE, TILE)
    expected = whole(vae, other)
    with normalised_with(measured_decoder(vae, latents)), ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: vae.decode(other).sample).result()
    assert torch.equal(found, expected)
