"""What this package adds to a pipeline, and the same by hand."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from promptnet.export.stock import in_stock_pipeline
from promptnet.inference.editing.card import EditCard, edit_fingerprint
from promptnet.inference.editing.stock_pipeline import stock_arguments
from promptnet.inference.resolution import adapt_resolution
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.lora import key_value_layers, word_layers
from promptnet.inference.subject.subject import Subject
from tests.composition.companions import dilated
from tests.composition.pipelines import HEIGHT, SCALE, STEPS, WIDTH, assemble, call, class_of
from tests.export.conftest import random_loras

NEUTRAL, STYLED = "a man", "a hat"  # short enough for 16 letters
FACTOR, BLOCKS = 2, ("down_blocks.1", "mid_block", "up_blocks.0")
SETTINGS: Any = {"factors": dict.fromkeys(BLOCKS, FACTOR), "active_steps": 50, "attention": True}
_AREA = HEIGHT * WIDTH / 32**2
# Attn-SF: sqrt(ln N / ln T) of 16x16 trained latents, and of half a side one block deeper.
_OUTER, _INNER = (math.sqrt(math.log(_AREA * trained) / math.log(trained)) for trained in (256, 64))
ATTENTION = {"down_blocks.0": _OUTER, "up_blocks.1": _OUTER, **dict.fromkeys(BLOCKS, _INNER)}
ALONE: Any = {"class_scale": 0.0, "fusion_steps": 0, "subject_scale": SCALE, "num_inference_steps": STEPS}


def is_ours(pipe: Any) -> bool:
    return type(pipe).__name__ == "PromptNetPipeline"


def plain(pipe: Any, **options: Any) -> Tensor:
    return call(pipe, prompt=NEUTRAL, **({"resolution": "off"} if is_ours(pipe) else {}), **options)


# -- edits: the condition between two prompts ------------------------------------------------------------------------


def edited(pipe: Any, made_with: Any, **options: Any) -> Tensor:
    """Draw with a card that was learned in another pipeline of the same networks."""
    known = edit_fingerprint(made_with)
    card = EditCard(torch.full((STEPS,), 0.3), NEUTRAL, STYLED, "DDIMScheduler", SCALE, known, "tiny")
    if is_ours(pipe):
        return plain(pipe, edits=card, **options)
    arguments = stock_arguments(pipe, card, strength=call_strength(pipe))
    return call(pipe, **{**arguments, **options})


def call_strength(pipe: Any) -> float | None:
    name = type(pipe).__name__
    return 0.7 if "Img2Img" in name else 1.0 if "Inpaint" in name else None


def edited_by_hand(pipe: Any, **options: Any) -> Tensor:
    more = {"resolution": "off"} if is_ours(pipe) else {}
    return call(pipe, **between(pipe), **more, **options)


@torch.no_grad()
def between(pipe: Any) -> dict[str, Tensor]:
    """Return the states 70 % of the way from one prompt to the other, as arguments."""
    family = "sdxl" if getattr(pipe, "text_encoder_2", None) is not None else "sd"
    stock = assemble(class_of("text2img", family), pipe.components)
    encoded: Any = [
        stock.encode_prompt(prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        for text in (NEUTRAL, STYLED)
    ]
    names = ["prompt_embeds", None, "pooled_prompt_embeds", None][: len(encoded[0])]
    pairs = zip(names, *encoded, strict=True)
    return {name: first + 0.7 * (second - first) for name, first, second in pairs if name is not None}


# -- sizes: re-dilated convolutions and scaled attention -------------------------------------------------------------


def sized(pipe: Any, made_with: Any = None, **options: Any) -> Tensor:
    if is_ours(pipe):
        return call(pipe, prompt=NEUTRAL, resolution=SETTINGS, **options)
    with adapt_resolution(pipe, HEIGHT, WIDTH, settings=SETTINGS, num_inference_steps=STEPS):
        return call(pipe, prompt=NEUTRAL, **options)


def sized_by_hand(pipe: Any, **options: Any) -> Tensor:
    return plain(dilated(pipe, FACTOR, BLOCKS, ATTENTION), **options)


# -- subjects: words of their own, and a LoRA in their rows ----------------------------------------------------------


def with_subject(pipe: Any, subject: Any, encoder: Any, **options: Any) -> Tensor:
    """Draw S* with plain guidance, in our pipeline or in diffusers' own."""
    if is_ours(pipe):
        return call(pipe, prompt="a S*", subject=subject, resolution="off", **ALONE, **options)
    generator = torch.Generator().manual_seed(0)
    with in_stock_pipeline(
        pipe,
        subject,
        "a S*",
        promptnet=encoder,
        height=HEIGHT,
        width=WIDTH,
        subject_scale=SCALE,
        num_inference_steps=STEPS,
        generator=generator,
    ) as arguments:
        return call(pipe, **{**arguments, **options})


def new_subject(pipe: Any) -> Subject:
    """Make somebody of noise, tuned so that one can see it."""
    generator = torch.Generator().manual_seed(0)
    layers = {f"unet.{name}": layer for name, layer in key_value_layers(pipe.unet).items()}
    layers |= {f"promptnet.{name}": layer for name, layer in word_layers(pipe.promptnet).items()}
    references = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 5, 20, generator=generator)
    loras = random_loras(layers, generator)
    return Subject(*references, torch.ones(1), "person", fingerprint=fingerprint(pipe), loras=loras)


def for_these_weights(subject: Subject, pipe: Any) -> Subject:
    """Return the subject as if it had been made with a pipeline's weights."""
    return replace(subject, fingerprint={**subject.fingerprint, **fingerprint(pipe)})
