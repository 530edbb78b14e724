from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from promptnet.datasets.avatars.render import identities, render, sample_attributes
from promptnet.images.crop import to_pixels
from promptnet.inference.references import decode_latents
from promptnet.inference.vae import decode_in_tiles, is_tiled, measured, normalised_with, picked

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


def whole(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    vae.disable_tiling()
    image = vae.decode(latents).sample
    vae.enable_tiling()
    return image


def test_large_latents_alone_are_tiled_and_only_when_told(vae: Any) -> None:
    assert is_tiled(vae, uneven())
    assert not is_tiled(vae, uneven(TILE, TILE))
    vae.disable_tiling()
    assert not is_tiled(vae, uneven())


def test_tiles_are_much_nearer_to_the_whole_image_than_diffusers_alone(embedded_vae: Any) -> None:
    """On avatars at three times the trained size, most of which is plain background."""
    random_numbers = Random(0)
    images = [render(who, sample_attributes(random_numbers), 192) for who in identities("validation")[:2]]
    with torch.no_grad():
        latents = embedded_vae.encode(torch.stack([to_pixels(image) for image in images])).latent_dist.mode()
        expected = whole(embedded_vae, latents)
        ours = (decode_in_tiles(embedded_vae, latents) - expected).abs().mean()
        theirs = (embedded_vae.decode(latents).sample - expected).abs().mean()
    assert ours < 0.6 * theirs


def test_no_steps_show_where_tiles_meet(embedded_vae: Any) -> None:
    """What tiles change of the step from a pixel to the next, across their borders against elsewhere."""
    image = to_pixels(render(identities("validation")[0], sample_attributes(Random(0)), 192))
    with torch.no_grad():
        latents = embedded_vae.encode(image[None]).latent_dist.mode()
        expected = whole(embedded_vae, latents)
        found = steps_at_borders(decode_in_tiles(embedded_vae, latents) - expected, 48)  # of 64, a quarter overlaps
        embedded_vae.tile_overlap_factor = 0
        abutting = steps_at_borders(decode_in_tiles(embedded_vae, latents) - expected, 64)
    assert found < 1.5
    assert abutting > 2, "the measure sees seams"


def steps_at_borders(change: torch.Tensor, every: int) -> float:
    """Mean absolute steps along both sides, at multiples of `every` over those elsewhere."""
    steps = [change.diff(dim=side).abs().transpose(side, -1).flatten(0, -2).mean(0) for side in (-1, -2)]
    at, elsewhere = torch.cat([step[every - 1 :: every] for step in steps]), torch.cat(steps)
    return float(at.mean() / elsewhere.mean())


def test_with_its_own_statistics_a_image_is_decoded_as_it_is(vae: Any) -> None:
    latents = uneven(TILE, TILE, rows=2)
    with normalised_with(measured(vae, latents)):
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


@pytest.mark.parametrize(("size", "expected"), [((24, 32), (6, 8)), ((64, 8), (8, 1)), ((9, 9), (8, 8))])
def test_picked_latents_are_some_of_the_latents_and_fit_a_tile(size: Any, expected: Any) -> None:
    latents = torch.randn(1, 1, *size)
    some = picked(latents, TILE)
    assert some.shape[-2:] == expected
    assert set(some.flatten().tolist()) <= set(latents.flatten().tolist())
