import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.inference.references import decode_latents, encode_pixels


def image(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_vae_that_overflows_decodes_in_float32_and_is_left_as_it_was(pipe: Any) -> None:
    """As in diffusers: where the VAE's config says so, in float16."""
    vae, latents = copy.deepcopy(pipe.vae).half(), torch.randn(1, 4, 8, 8).half()
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    assert vae.config.force_upcast
    with torch.no_grad():
        found = decode_latents(vae, latents)
        expected = copy.deepcopy(vae).float().decode(latents.float() / vae.config.scaling_factor).sample
    assert torch.equal(found, expected)
    assert all(value.dtype == torch.float16 for value in vae.state_dict().values())
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        assert decode_latents(vae, latents).dtype == torch.float16


def test_a_graph_is_made_for_latents_that_ask_for_it_alone(pipe: Any) -> None:
    vae, latents = copy.deepcopy(pipe.vae).requires_grad_(), torch.randn(1, 4, 8, 8)
    assert not decode_latents(vae, latents).requires_grad
    assert decode_latents(vae, latents.requires_grad_()).requires_grad


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_scaled_there_and_back(pipe: Any, shift: float | None):
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    mode = pipe.vae.encode(pixels).latent_dist.mode()
    old = pipe.vae.config.shift_factor
    pipe.vae.register_to_config(shift_factor=shift)
    try:
        latents = encode_pixels(pipe.vae, pixels)
        decoded = decode_latents(pipe.vae, latents)
    finally:
        pipe.vae.register_to_config(shift_factor=old)
    torch.testing.assert_close(latents, (mode - (shift or 0)) * pipe.vae.config.scaling_factor)
    torch.testing.assert_close(decoded, pipe.vae.decode(mode).sample, rtol=1e-4, atol=1e-5)


def test_a_float16_vae_that_overflows_encodes_in_float32(pipe: Any):
    vae, pixels = copy.deepcopy(pipe.vae), torch.rand(1, 3, 16, 16) * 2 - 1
    expected, seen = encode_pixels(vae, pixels), []
    vae.to(torch.float16)
    vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.no_grad():
        found = encode_pixels(vae, pixels)
    assert (seen, found.dtype, vae.dtype) == ([torch.float32], torch.float16, torch.float16)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-3)


def test_both_networks_see_the_central_square(pipe: Any):
    wide = image()
    whole, centre, side = (
        pipe.encode_references(p) for p in (wide, wide.crop((10, 0, 50, 40)), wide.crop((0, 0, 40, 40)))
    )
    for found, central, other in zip(whole, centre, side, strict=True):
        assert (found - central).abs().max() < 0.02  # resampling looks a little beyond the square's edge
        assert (found - other).abs().max() > 0.1


def test_vision_states_are_those_before_the_post_layer_norm(pipe: Any):
    encoded = pipe.encode_references([image(), image(40, 40)])
    assert encoded.latents.shape == (2, 4, 8, 8)
    assert encoded.vision_states.shape == (2, 17, 24)
    square = image(40, 40)
    pixels = pipe.feature_extractor(images=square, return_tensors="pt").pixel_values
    output = pipe.image_encoder(pixels, output_hidden_states=True)
    torch.testing.assert_close(encoded.vision_states[1:], output.hidden_states[-1])


def test_bad_images_are_refused(pipe: Any):
    with pytest.raises(ValueError, match="no reference image"):
        pipe.encode_references([])
    with pytest.raises(ValueError, match=r"missing\.png"):
        pipe.encode_references("missing.png")
