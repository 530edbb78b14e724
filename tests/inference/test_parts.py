"""Parts of a pipeline that load and do not belong together are refused; what a prompt holds is said."""

import copy
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline
from promptnet.inference import PUBLISHED
from promptnet.inference.sampling.arguments import check_text_layer


def with_parts(pipe: Any, **parts: Any) -> Any:
    found = PromptNetPipeline(**{**pipe.components, **parts})
    found.set_progress_bar_config(disable=True)
    return found


def generated(pipe: Any, prompt: str = "a photo of a dog", **more: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent", **more).images


# -- the text encoder's layer --------------------------------------------------------------------------------------


def with_one_layer_more(text_encoder: Any) -> Any:
    """The encoder that this one was cut from: its last states but one are this one's last."""
    config = copy.deepcopy(text_encoder.config)
    config.num_hidden_layers += 1
    torch.manual_seed(7)
    whole = CLIPTextModel(config).eval().requires_grad_(False)
    missing, _ = whole.load_state_dict(text_encoder.state_dict(), strict=False)
    assert missing
    return whole


def test_a_complete_tower_read_before_its_last_layer_is_the_cut_one(pipe: Any, make_subject: Any, tmp_path: Path):
    """Row 9 of the faults: the layer was fixed."""
    whole = with_parts(pipe, text_encoder=with_one_layer_more(pipe.text_encoder), text_layer="penultimate")
    torch.testing.assert_close(generated(whole), generated(pipe))
    assert (generated(with_parts(whole)) - generated(pipe)).abs().max() > 1e-3
    subjects = make_subject(pipe), make_subject(whole)
    found, expected = (generated(p, "a photo of S*", subject=s) for p, s in zip((pipe, whole), subjects, strict=True))
    torch.testing.assert_close(found, expected)
    whole.save_pretrained(tmp_path)
    again = PromptNetPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generated(again), generated(pipe))


def test_the_layer_must_be_said_of_stable_diffusion_2s_complete_tower():
    complete, cut, other = (
        SimpleNamespace(hidden_size=w, num_hidden_layers=n) for w, n in ((1024, 24), (1024, 23), (768, 12))
    )
    for layer, configs in ((None, [cut]), (None, [other]), ("penultimate", [complete]), ("last", [complete])):
        check_text_layer(layer, configs)
    check_text_layer(None, [other, complete])
    refused: tuple[tuple[str | None, list[Any], str], ...] = (
        (None, [complete], "complete ViT-H, of 24 layers.*give text_layer='penultimate'.*of 23 layers"),
        ("first", [other], "text_layer='first' must be 'last' or 'penultimate'"),
        ("last", [other, other], "SDXL's are read before"),
    )
    for layer, configs, message in refused:
        with pytest.raises(ValueError, match=message):
            check_text_layer(layer, configs)


# -- the encoder's image encoder ---------------------------------------------------------------------------------------


def test_an_encoder_for_another_vision_width_is_refused_at_load(pipe: Any, tmp_path: Path):
    """Row 11 of the faults: it loaded, and `encode` succeeded."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    wide = CLIPVisionModel(config).eval()
    message = re.escape("states 24 wide (vision_dim), but the image encoder's are 32")
    with pytest.raises(ValueError, match=message):
        with_parts(pipe, image_encoder=wide)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        PromptNetPipeline.from_pretrained(tmp_path, image_encoder=wide)
    assert with_parts(pipe, image_encoder=None).image_encoder is None


def test_an_encoder_for_other_latents_is_refused(pipe: Any):
    encoder = PromptNetModel.from_config({**pipe.promptnet.config, "in_channels": 16})
    with pytest.raises(
        ValueError, match=re.escape("latents of 16 channels (in_channels), but the base model's have 4")
    ):
        with_parts(pipe, promptnet=encoder)


# -- words ------------------------------------------------------------------------------------------------------------


def test_words_that_the_base_model_does_not_know_are_named(pipe: Any, make_subject: Any, caplog: Any):
    """Row 12 of the faults."""

    def warned(*args: Any, **given: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="promptnet.models.vocabulary"):
            generated(pipe, *args, **given)
        return [record.getMessage() for record in caplog.records if "does not know" in record.getMessage()]

    assert not warned("a photo of a person wearing a hat")
    (message,) = warned("a person riding a horse on the moon", negative_prompt="blurry")
    assert "'riding', 'horse', 'the', 'moon', 'blurry'" in message
    (message,) = warned("a photo of S*", subject=make_subject(pipe), class_word="astronaut")
    assert "the word 'astronaut'" in message


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_subject_made_in_float32_is_drawn_in_half_precision(pipe: Any, make_subject: Any, dtype: torch.dtype):
    """Row 32 of the faults."""
    subject = make_subject(pipe, tuned=True)
    half = PromptNetPipeline(**{name: copy.deepcopy(part) for name, part in pipe.components.items()}).to(dtype)
    half.set_progress_bar_config(disable=True)
    subject.check(half)
    latents = torch.randn(1, 4, 8, 8)
    found, expected = (generated(p, "a photo of S*", subject=subject, latents=latents) for p in (half, pipe))
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert (found.float() - expected).abs().mean() < 0.2 * expected.abs().mean()


# -- several reference images ---------------------------------------------------------------------------------------


def test_published_weights_of_several_references_are_those_of_a_larger_scale(pipe: Any, make_subject: Any):
    subject = make_subject(pipe, num_references=2)
    options: dict[str, Any] = {"subject": subject, "fusion_steps": 0}
    published = generated(pipe, "a photo of S*", **options, subject_scale=2.0, reference_weights="each")
    torch.testing.assert_close(published, generated(pipe, "a photo of S*", **options, subject_scale=4.0))
    assert PUBLISHED.reference_weights == "each"
    alone = {"subject": make_subject(pipe), "fusion_steps": 0}
    assert torch.equal(
        generated(pipe, "a photo of S*", **alone), generated(pipe, "a photo of S*", **alone, reference_weights="each")
    )


# -- loading as diffusers does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["promptnet", "diffusers"])
def test_a_saved_pipeline_loads_as_any_other(pipe: Any, tmp_path: Path, first: str):
    """Row 33 of the faults."""
    pipe.save_pretrained(tmp_path)
    second = "diffusers" if first == "promptnet" else "promptnet"
    code = (
        f"import sys, {first}; assert {first!r} == 'diffusers' or 'torch' not in sys.modules; import {second};"
        "import diffusers; found = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1]);"
        "print(type(found).__module__, type(found).__name__, type(found.promptnet).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["promptnet.inference.pipeline", "PromptNetPipeline", "PromptNetModel"], done.stderr
    assert not hasattr(diffusers, "NoSuchPipeline")
