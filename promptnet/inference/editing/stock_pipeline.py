"""Edits in diffusers' own pipelines of Stable Diffusion and SDXL, by what these take from callers.

A callback at the end of a step sets the condition of the next one, so the first step's goes in as `prompt_embeds`.
Which pipelines, and which weight belongs to which of their calls, says mixing_levels.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.editing.card import EditCard, EditError, listed_cards
from promptnet.inference.editing.measured import SEEDS, warn_of_losses
from promptnet.inference.editing.noise_levels import Levels, check_pipeline
from promptnet.inference.editing.rule import Directions, check_lengths, joined_weights
from promptnet.models.text_encoders import text_encoders_of


@dataclass(frozen=True, eq=False)
class StockEdit:
    """The `callback_on_step_end` of edits in a stock pipeline.

    Args:
        states: (T, D), the prompt's.
        pooled: (P,), SDXL's pooled state of the prompt, or None.
        weights: (J, N).
        directions: of the J edits.
        levels: where these weights belong.
    """

    states: Tensor
    pooled: Tensor | None
    weights: Tensor
    directions: Directions
    levels: Levels

    @property
    def tensor_inputs(self) -> list[str]:
        """What the callback must be given."""
        return ["prompt_embeds"] if self.pooled is None else ["prompt_embeds", "add_text_embeds"]

    def condition(self, place: int) -> tuple[Tensor, Tensor | None]:
        """c_i of the weights at `place`, (T, D) and (P,)."""
        states, pooled = self.directions.total(self.weights[:, place])
        return self.states + states, None if pooled is None or self.pooled is None else self.pooled + pooled

    def first_condition(self) -> tuple[Tensor, Tensor | None]:
        """c_i of the call that the drawing is expected to begin with."""
        return self.condition(self.levels.weight(self.levels.first, self.levels.first))

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next call's condition, in the rows behind the negative prompt's.

        The pipeline's tensors are overwritten: some pipelines do not take back what a callback returns, or keep
        another name of theirs for the ControlNet.

        Raises:
            EditError: the drawing has other noise levels than the edits, or began at another one than was said.
        """
        if index == 0:
            self.levels.check(pipe.scheduler)
            self._check_begin(self.levels.call(index, timestep, pipe.num_timesteps))
        call = self.levels.call(index, timestep, pipe.num_timesteps)
        if call + 1 >= len(pipe.scheduler.timesteps):
            return {}
        states, pooled = self.condition(self.levels.weight(call + 1, call - index))
        num_negative = _num_negative(pipe, len(tensors["prompt_embeds"]))
        found = {"prompt_embeds": _replaced(tensors["prompt_embeds"], states, num_negative)}
        if pooled is not None:
            found["add_text_embeds"] = _replaced(tensors["add_text_embeds"], pooled, num_negative)
        return found

    def _check_begin(self, begin: int) -> None:
        given, right = (self.weights[:, self.levels.weight(place, place)] for place in (self.levels.first, begin))
        if not torch.equal(given, right):
            raise EditError(
                f"The drawing begins with step {begin + 1} of {self.weights.shape[1]}, but the arguments were made for "
                f"one that begins with step {self.levels.first + 1}, and the edit's weights differ: give strength=... "
                "or denoising_start=... to stock_arguments(...), which hands it on to the pipeline."
            )


def _num_negative(pipe: Any, num_rows: int) -> int:
    """How many of the rows are the negative prompt's: those in front, under guidance; PAG adds a third part."""
    if not pipe.do_classifier_free_guidance:
        return 0
    return num_rows // (2 + bool(getattr(pipe, "do_perturbed_attention_guidance", False)))


def _replaced(old: Tensor, new: Tensor, num_negative: int) -> Tensor:
    """The rows (B, ...) with `new` in each behind the first `num_negative`."""
    old[num_negative:] = new.to(old)
    return old


def stock_arguments(
    pipe: Any,
    cards: EditCard | Sequence[EditCard],
    prompt: str | None = None,
    *,
    negative_prompt: str = "",
    num_images: int = 1,
    guidance_scale: float | None = None,
    strength: float | None = None,
    denoising_start: float | None = None,
) -> dict[str, Any]:
    """What to call a stock pipeline with: `pipe(**stock_arguments(pipe, card), generator=...)`.

    Args:
        pipe: a diffusers pipeline of Stable Diffusion or SDXL; see `mixing_levels.check_pipeline`.
        cards: one edit or several.
        prompt: what to draw; None is the first edit's neutral prompt.
        negative_prompt: what to move away from.
        num_images: images.
        guidance_scale: None is the first edit's.
        strength: of img2img and inpainting, handed on to the pipeline; None is the pipeline's own default.
        denoising_start: of SDXL, handed on too. Both say with which weight the drawing begins, so they are given here,
            not to the pipeline. `denoising_end` may be given to the pipeline.

    Raises:
        EditError: the pipeline is not known, an edit was learned in another base model or with another scheduler,
            edits do not belong together, or a prompt is longer than a encoder. While drawing: the noise levels are
            others.
    """
    check_pipeline(pipe)
    cards = listed_cards(cards)
    weights = joined_weights(cards)
    for card in cards:
        card.check(pipe)
    warn_of_losses(cards, SEEDS)
    texts = [prompt if prompt is not None else cards[0].neutral]
    texts += [card.neutral for card in cards] + [card.styled for card in cards]
    check_lengths(text_encoders_of(pipe), [*texts, negative_prompt])
    states, pooled, negative, negative_pooled = _encoded(pipe, texts, negative_prompt)
    num_cards = len(cards)
    directions = Directions(
        states[1 + num_cards :] - states[1 : 1 + num_cards],
        None if pooled is None else pooled[1 + num_cards :] - pooled[1 : 1 + num_cards],
    )
    levels = Levels.of(pipe, weights.shape[1], strength, denoising_start)
    edit = StockEdit(states[0], None if pooled is None else pooled[0], weights.to(states.device), directions, levels)
    first, first_pooled = edit.first_condition()
    arguments: dict[str, Any] = {
        "prompt_embeds": first.expand(num_images, *first.shape),
        "negative_prompt_embeds": negative.expand(num_images, *negative.shape[1:]),
        "num_inference_steps": weights.shape[1],
        "guidance_scale": cards[0].guidance_scale if guidance_scale is None else guidance_scale,
        "callback_on_step_end": edit,
        "callback_on_step_end_tensor_inputs": edit.tensor_inputs,
    }
    given = {"strength": strength, "denoising_start": denoising_start}
    arguments |= {name: value for name, value in given.items() if value is not None}
    if first_pooled is not None and negative_pooled is not None:
        arguments["pooled_prompt_embeds"] = first_pooled.expand(num_images, *first_pooled.shape)
        arguments["negative_pooled_prompt_embeds"] = negative_pooled.expand(num_images, *negative_pooled.shape[1:])
    return arguments


@torch.no_grad()
def _encoded(pipe: Any, texts: list[str], negative_prompt: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """States and pooled states of the texts (N, ...), and of the negative prompt (1, ...), as the pipeline has them."""
    device = pipe._execution_device
    common: dict[str, Any] = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    negatives = [negative_prompt] * len(texts)
    found = pipe.encode_prompt(prompt=texts, negative_prompt=negatives, **common)
    if len(found) == 2:
        states, negative = found
        return states, None, negative[:1], None
    states, negative, pooled, negative_pooled = found
    if not negative_prompt and pipe.config.get("force_zeros_for_empty_prompt", False):
        # For a negative prompt that is not given SDXL takes zeros, which a text that is given and empty would not be.
        negative, negative_pooled = torch.zeros_like(negative), torch.zeros_like(negative_pooled)
    return states, pooled, negative[:1], negative_pooled[:1]
