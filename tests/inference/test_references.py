from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.inference.references import decode_latents, encode_pixels


def picture(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


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


def test_both_networks_see_the_central_square(pipe: Any):
    wide = picture()
    whole, centre, side = (
        pipe.encode_references(p) for p in (wide, wide.crop((10, 0, 50, 40)), wide.crop((0, 0, 40, 40)))
    )
    for found, central, other in zip(whole, centre, side, strict=True):
        assert (found - central).abs().max() < 0.02  # resampling looks a little beyond the square's edge
        assert (found - other).abs().max() > 0.1


def test_vision_states_are_those_before_the_post_layer_norm(pipe: Any):
    encoded = pipe.encode_references([picture(), picture(40, 40)])
    assert encoded.latents.shape == (2, 4, 8, 8)
    assert encoded.vision_states.shape == (2, 17, 24)
    square = picture(40, 40)
    pixels = pipe.feature_extractor(images=square, return_tensors="pt").pixel_values
    output = pipe.image_encoder(pixels, output_hidden_states=True)
    torch.testing.assert_close(encoded.vision_states[1:], output.hidden_states[-1])


def test_bad_pictures_are_refused(pipe: Any):
    with pytest.raises(ValueError, match="no reference picture"):
        pipe.encode_references([])
    with pytest.raises(ValueError, match=r"missing\.png"):
        pipe.encode_references("missing.png")
