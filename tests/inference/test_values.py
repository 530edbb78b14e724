"""Arguments of kinds that people give: numpy's numbers are numbers, texts and the like are refused in one line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL
from PIL import Image

from promptnet import PromptNetPipeline
from promptnet.inference.tuning import customize as customizing

FEW: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
IMAGE = Image.new("RGB", (64, 64), (200, 100, 50))


def test_numpys_numbers_are_numbers(pipe: Any):
    """Row 31 of the faults."""
    latents = torch.randn(2, 4, 8, 8)
    given: dict[str, Any] = {
        "num_inference_steps": np.int64(2),
        "guidance_scale": np.float32(3),
        "height": np.int32(16),
    }
    more: dict[str, Any] = {"latents": latents, "output_type": "latent"}
    found = pipe("a", num_images_per_prompt=np.int64(2), **given, **more).images
    plain = pipe("a", num_images_per_prompt=2, num_inference_steps=2, guidance_scale=3.0, height=16, **more).images
    assert torch.equal(found, plain)
    subject = pipe.customize(IMAGE, steps=np.int64(1), rank=np.int32(2), learning_rate=np.float64(1e-3))
    assert subject.num_references == 1


def test_a_tuple_of_generators_is_a_list(pipe: Any):
    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (0, 1)]

    found, expected = (pipe(["a", "a dog"], generator=kind(seeded()), **FEW).images for kind in (tuple, list))
    assert torch.equal(found, expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "height": ({"height": "64"}, "height='64' must be a whole number"),
    "width": ({"width": 16.0}, r"width=16\.0 must be a whole number"),
    "steps": ({"num_inference_steps": True}, "num_inference_steps=True must be a whole number"),
    "scale": ({"guidance_scale": "3"}, "guidance_scale='3' must be a finite number"),
    "eta": ({"eta": "0"}, "eta='0' must be a finite number"),
    "share": ({"fusion_end": 1.5}, r"fusion_end=1\.5 must be between 0 and 1"),
    "generator": ({"generator": 0}, r"generator=0 must be a torch\.Generator, or a list .*manual_seed\(0\)"),
    "generators": ({"generator": [0]}, r"generator=\[0\] must be a torch\.Generator"),
    "two": ({"generator": [torch.Generator()] * 2}, "There are 2 generators for 1 images"),
    "images": ({"num_images_per_prompt": "2"}, "num_images_per_prompt='2' must be a whole number"),
    "latents": ({"latents": np.zeros((1, 4, 8, 8))}, r"latents must be a torch\.Tensor .* not a ndarray"),
    "negative": ({"negative_prompt": 3}, "negative_prompt must be a text or a list of texts, but is 3"),
    "edits": ({"edits": "smile.safetensors"}, r"edits must be .* use EditCard\.load"),
    "class": ({"class_word": 3}, "class_word=3 must be a short word"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_with_is_refused_before_any_work(pipe: Any, name: str):
    given, message = REFUSED[name]
    handle = pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("drawn"))
    try:
        with pytest.raises(ValueError, match=message):
            pipe("a", **{**FEW, **given})
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_word": ""}, "class_word='' must be a short word"),
        ({"class_word": "S*"}, r"class_word='S\*' holds a placeholder"),
        ({"generator": 0}, r"generator=0 must be a torch\.Generator"),
        ({"generator": (torch.Generator(),)}, r"must be a torch\.Generator"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' must be a finite number"),
        ({"scales": 0.7}, r"scales=0\.7 must be a list"),
        ({"scales": ("a", 1)}, "scales='a' must be a finite number"),
        ({"scales": (1.2, 0.8)}, "the smaller one first"),
        ({"prompts": [3]}, r"tuning prompt 3 must mention S\*"),
        ({"train": 5}, "train=5 must be a list"),
    ],
)
def test_what_cannot_be_customised_with_is_refused_before_any_work(
    pipe: Any, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    """Row 37 of the faults: a bad class word was refused after the whole tuning."""
    monkeypatch.setattr(customizing, "open_references", lambda *_: pytest.fail("opened"))
    with pytest.raises(ValueError, match=message):
        pipe.customize(IMAGE, steps=1, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_word": "a\nb"}, "must be a short word"),
        ({"weights": ["a"]}, r"weights=\['a'\] must hold a number above 0 for each of the 1 images"),
        ({"weights": [1, 2]}, "for each of the 1 images"),
        ({"weights": [0.0]}, "a number above 0"),
    ],
)
def test_what_cannot_be_encoded_with_is_refused_before_any_work(
    pipe: Any, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(pipe), "encode_references", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=message):
        pipe.encode(IMAGE, **given)


def test_weights_of_images_may_be_a_tensor_or_an_array(pipe: Any):
    kinds: tuple[Callable[[list[float]], Any], ...] = (list, torch.tensor, np.array)
    for kind in kinds:
        assert pipe.encode([IMAGE] * 2, weights=kind([1.0, 3.0])).weights.tolist() == [0.25, 0.75]


def test_an_asymmetric_vae_has_no_shift(pipe: Any):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "down_block_out_channels": (8, 16),
        "up_block_out_channels": (8, 16),
    }
    vae = AsymmetricAutoencoderKL(**sizes, norm_num_groups=4, latent_channels=4).eval()
    asymmetric = PromptNetPipeline(**{**pipe.components, "vae": vae})
    asymmetric.set_progress_bar_config(disable=True)
    assert asymmetric("a", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)
    assert asymmetric.encode(IMAGE).num_references == 1
