"""Edits in every stock pipeline of Stable Diffusion and SDXL: each network call gets its noise level's weight."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from promptnet.inference.editing.card import EditCard, EditError, edit_fingerprint
from promptnet.inference.editing.noise_levels import SD_PIPELINES, SDXL_PIPELINES, Levels
from promptnet.inference.editing.stock_pipeline import stock_arguments
from tests.inference.editing.test_card import SCHEDULERS, stock_xl

NEUTRAL, STYLED = "a photo of a person", "a photo of a person wearing a hat"
NUM_STEPS = 6
WEIGHTS = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
IMAGE, MASK = Image.new("RGB", (16, 16), (120, 90, 60)), Image.new("L", (16, 16), 255)


def build_controlnet(unet: Any, kind: str) -> Any:
    torch.manual_seed(3)
    model: Any = getattr(diffusers, kind)
    union = {"num_control_type": 2, "num_trans_channel": 16, "num_trans_head": 2, "num_proj_channel": 16}
    more: dict[str, Any] = union if kind == "ControlNetUnionModel" else {}
    names = (
        *("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "attention_head_dim"),
        *("norm_num_groups", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    )
    config = {name: unet.config[name] for name in names}
    return model(**config, conditioning_embedding_out_channels=(8, 16), **more).eval().requires_grad_(False)


def build(name: str, pipe: Any) -> Any:
    """A stock pipeline of the fixture's networks, or of small random ones of SDXL's kind."""
    parts: dict[str, Any] = dict(stock_xl(pipe).components if "XL" in name else pipe.components)
    kind: Any = getattr(diffusers, name)
    if "ControlNet" in name:
        parts["controlnet"] = build_controlnet(
            parts["unet"], "ControlNetUnionModel" if "Union" in name else "ControlNetModel"
        )
    if "XL" not in name:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    taken = kind.__init__.__code__.co_varnames
    found = kind(**{part: value for part, value in parts.items() if part in taken})
    found.set_progress_bar_config(disable=True)
    return found


def arguments_of(name: str) -> dict[str, Any]:
    """What such a pipeline wants besides prompts."""
    found: dict[str, Any] = {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    if "Img2Img" not in name and "ControlNetPipeline" not in name and "ControlNetPAGPipeline" not in name:
        found |= {"height": 16, "width": 16}
    if "Inpaint" in name:
        found |= {"image": IMAGE, "mask_image": MASK}
    elif "Img2Img" in name:
        found["image"] = IMAGE
    if "Union" in name:
        found |= {"control_image": [IMAGE], "control_mode": [0]}
    elif "ControlNet" in name:
        found["control_image" if "image" in found else "image"] = IMAGE
    return found


def card_of(pipe: Any, **more: Any) -> EditCard:
    name = type(pipe.scheduler).__name__
    return replace(EditCard(WEIGHTS, NEUTRAL, STYLED, name, 3.0, edit_fingerprint(pipe)), **more)


Call = tuple[float, Tensor, Tensor | None]


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[Call]]:
    """Timestep, states and pooled states of every call of the network."""
    calls: list[Call] = []

    def note(_: Any, positional: Any, given: Any) -> None:
        added = given.get("added_cond_kwargs") or {}
        pooled = added.get("text_embeds")
        states = given["encoder_hidden_states"].clone()
        calls.append((float(positional[1]), states, None if pooled is None else pooled.clone()))

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def encoded(pipe: Any, text: str) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        found = pipe.encode_prompt(
            prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return found[0][0], found[2][0] if len(found) == 4 else None


def check_calls(pipe: Any, calls: list[Call], weights: dict[float, float], num_negative: int) -> None:
    """Every call's rows behind the negative prompt's are what its timestep's weight mixes, and the others are not."""
    (neutral, pooled), (styled, styled_pooled) = encoded(pipe, NEUTRAL), encoded(pipe, STYLED)
    for timestep, states, found_pooled in calls:
        rest = 1 - weights[timestep]
        expected = neutral + rest * (styled - neutral)
        torch.testing.assert_close(states[num_negative:], expected.expand_as(states[num_negative:]))
        assert all((row - neutral).abs().max() > 1e-3 for row in states[:num_negative])
        if pooled is not None and styled_pooled is not None:
            assert found_pooled is not None
            mixed = pooled + rest * (styled_pooled - pooled)
            torch.testing.assert_close(found_pooled[num_negative:], mixed.expand_as(found_pooled[num_negative:]))


def weights_by_timestep(pipe: Any) -> dict[float, float]:
    pipe.scheduler.set_timesteps(NUM_STEPS)
    return dict(zip(map(float, pipe.scheduler.timesteps), WEIGHTS.tolist(), strict=True))


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
@pytest.mark.parametrize("name", SD_PIPELINES + SDXL_PIPELINES)
def test_every_call_of_every_stock_pipeline_has_its_levels_weight(pipe: Any, name: str, guidance_scale: float):
    """Row 4 of the faults: weights were counted from the first step drawn, and PAG's third part of the rows."""
    theirs = build(name, pipe)
    partial: dict[str, Any] = {"strength": 0.5} if "Img2Img" in name or "Inpaint" in name else {}
    arguments = stock_arguments(theirs, card_of(theirs), guidance_scale=guidance_scale, num_images=2, **partial)
    with recorded(theirs.unet) as calls, recorded(getattr(theirs, "controlnet", nn.Identity())) as controlled:
        theirs(**arguments, **arguments_of(name))
    assert len(calls) == (3 if partial else NUM_STEPS)
    num_negative = 2 if guidance_scale > 1 else 0
    assert len(calls[0][1]) == 2 + num_negative + 2 * ("PAG" in name)
    weights = weights_by_timestep(theirs)
    assert [weights[timestep] for timestep, _, _ in calls] == pytest.approx(WEIGHTS.tolist()[-len(calls) :])
    check_calls(theirs, calls, weights, num_negative)
    assert len(controlled) == (len(calls) if "ControlNet" in name else 0)
    check_calls(theirs, controlled, weights, num_negative)


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"])
def test_drawings_handed_on_by_denoising_end_go_on_with_their_weights(pipe: Any, name: str):
    first, second = build("StableDiffusionXLPipeline", pipe), build(name, pipe)
    more = {**arguments_of(name), "image": torch.randn(1, 4, 8, 8)}
    with recorded(first.unet) as calls:
        first(**stock_arguments(first, card_of(first)), denoising_end=0.5, **arguments_of("StableDiffusionXLPipeline"))
    with recorded(second.unet) as others:
        second(**stock_arguments(second, card_of(second), denoising_start=0.5), **more)
    for theirs, found in ((first, calls), (second, others)):
        check_calls(theirs, found, weights_by_timestep(theirs), 1)
    assert [timestep for timestep, _, _ in calls + others] == list(weights_by_timestep(first))


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_every_scheduler(pipe: Any, scheduler: str, strength: float):
    theirs = build("StableDiffusionImg2ImgPipeline", pipe)
    options = {"skip_prk_steps": True, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    theirs.scheduler = getattr(diffusers, scheduler).from_config(theirs.scheduler.config, **options)
    arguments = stock_arguments(theirs, card_of(theirs), strength=strength)
    with recorded(theirs.unet) as calls:
        theirs(**arguments, **arguments_of("Img2Img"))
    theirs.scheduler.set_timesteps(NUM_STEPS)
    levels = list(dict.fromkeys(map(float, theirs.scheduler.timesteps)))
    weights = dict(zip(levels, WEIGHTS.tolist(), strict=True))
    if scheduler == "PNDMScheduler" and strength == 1.0:  # as published, the second call shares the first one's weight
        check_calls(theirs, calls[1:2], {levels[1]: 1.0}, 1)
        del calls[1]
    check_calls(theirs, calls, weights, 1)


def test_a_beginning_that_was_not_said_is_refused_and_the_default_known(pipe: Any):
    theirs = build("StableDiffusionImg2ImgPipeline", pipe)
    more = arguments_of("Img2Img")
    with recorded(theirs.unet) as calls:
        theirs(**stock_arguments(theirs, card_of(theirs)), **more)  # of strength 0.8
    check_calls(theirs, calls, weights_by_timestep(theirs), 1)
    assert len(calls) == 4
    arguments = stock_arguments(theirs, card_of(theirs))
    message = "begins with step 4 of 6, but the arguments were made for one that begins with step 3.*give strength="
    with pytest.raises(EditError, match=message):
        theirs(**arguments, **more, strength=0.5)
    flat = card_of(theirs, weights=torch.full((6,), 0.3))
    theirs(**stock_arguments(theirs, flat), **more, strength=0.5)  # the same weight everywhere


def test_what_cannot_be_drawn_is_refused_by_name(pipe: Any):
    plain, image = (build(f"StableDiffusion{kind}Pipeline", pipe) for kind in ("", "Img2Img"))
    refused: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (plain, {"strength": 0.5}, "StableDiffusionPipeline takes no strength"),
        (image, {"denoising_start": 0.5}, "StableDiffusionImg2ImgPipeline takes no denoising_start"),
        (image, {"strength": 0.1}, "no step would be drawn"),
    )
    for theirs, options, message in refused:
        with pytest.raises(EditError, match=message):
            stock_arguments(theirs, card_of(theirs), **options)


@pytest.mark.parametrize("noise", ["timesteps", "sigmas"])
def test_other_noise_levels_are_refused(pipe: Any, noise: str):
    theirs = build("StableDiffusionPipeline", pipe)
    euler: Any = diffusers.EulerDiscreteScheduler
    theirs.scheduler = euler.from_config(theirs.scheduler.config)
    theirs.scheduler.set_timesteps(NUM_STEPS)
    own = {"timesteps": theirs.scheduler.timesteps.tolist(), "sigmas": theirs.scheduler.sigmas.tolist()}[noise]
    arguments, more = stock_arguments(theirs, card_of(theirs)), arguments_of("StableDiffusionPipeline")
    del arguments["num_inference_steps"]
    theirs(**arguments, **more, **{noise: own})
    other = [0.7 * value for value in own]
    with pytest.raises(EditError, match=r"draws at other noise levels .* leave timesteps= and sigmas= out"):
        theirs(**arguments, **more, **{noise: other})
    with pytest.raises(EditError, match="6 mixing weights, but the scheduler makes 5 calls"):
        theirs(**arguments, **more, **{noise: own[:-1]})


class Renamed(diffusers.StableDiffusionPipeline):
    """A class of one's own with the stock loop."""


class Rewritten(diffusers.StableDiffusionPipeline):
    """And one with another loop."""

    def __call__(self, **arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(**arguments)


def test_other_pipelines_are_refused_by_name(pipe: Any):
    theirs = build("StableDiffusionPipeline", pipe)
    stock_arguments(Renamed(**theirs.components, requires_safety_checker=False), card_of(theirs))
    strangers: list[Any] = [
        diffusers.StableDiffusionInstructPix2PixPipeline(**theirs.components, requires_safety_checker=False),
        Rewritten(**theirs.components, requires_safety_checker=False),
    ]
    for stranger in strangers:
        with pytest.raises(EditError, match=f"do not work in {type(stranger).__name__}.*{re.escape(SD_PIPELINES[0])}"):
            stock_arguments(stranger, card_of(theirs))
    with pytest.raises(EditError, match=r"pipe\(prompt, edits=card\)"):
        stock_arguments(pipe, card_of(pipe))


def test_the_second_of_plms_calls_is_told_from_a_beginning_there(pipe: Any):
    theirs = build("StableDiffusionImg2ImgPipeline", pipe)
    theirs.scheduler = diffusers.PNDMScheduler.from_config(theirs.scheduler.config, skip_prk_steps=True)
    whole, later = (Levels.of(theirs, NUM_STEPS, strength) for strength in (1.0, 5 / 6))
    assert (whole.first, later.first) == (0, 1)
    second = whole.noise["timesteps"][1]
    assert whole.call(1, second, 7) == 1
    assert whole.weight(1, 0) == 0
    assert later.call(0, second, 6) == 1
    assert later.weight(1, 1) == 1
    assert [later.weight(call, 1) for call in (2, 3, 6)] == [1, 2, 5]
