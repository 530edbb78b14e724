"""Edits in diffusers' own StableDiffusionPipeline and StableDiffusionXLPipeline, by what these take from callers.

A callback at the end of a step sets the condition of the next one, so the first step's goes in as `prompt_embeds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.editing.card import MixingWeights
from promptnet.inference.editing.rule import Directions, check_lengths, joined_weights, weight_place
from promptnet.models.text_encoders import text_encoders_of

PLMS = "PNDMScheduler"  # makes two calls for the first of several steps


@dataclass(frozen=True, eq=False)
class StockEdit:
    """The `callback_on_step_end` of edits in a stock pipeline.

    Args:
        states: (T, D), the prompt's.
        pooled: (P,), SDXL's pooled state of the prompt, or None.
        weights: (J, N).
        directions: of the J edits.
    """

    states: Tensor
    pooled: Tensor | None
    weights: Tensor
    directions: Directions

    @property
    def tensor_inputs(self) -> list[str]:
        """What the callback must be given."""
        return ["prompt_embeds"] if self.pooled is None else ["prompt_embeds", "add_text_embeds"]

    def condition(self, place: int) -> tuple[Tensor, Tensor | None]:
        """c_i of the weights at `place`, (T, D) and (P,)."""
        states, pooled = self.directions.total(self.weights[:, place])
        return self.states + states, None if pooled is None or self.pooled is None else self.pooled + pooled

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next call's condition, in the rows behind the negative prompt's.

        Raises:
            MixingError: the drawing has another number of steps than the edits.
        """
        num_calls = len(pipe.scheduler.timesteps)
        shared = num_calls > 1 and type(pipe.scheduler).__name__ == PLMS
        place = weight_place(index + 1, num_calls, self.weights.shape[1], shared=shared)
        if index + 1 >= num_calls:
            return {}
        states, pooled = self.condition(place)
        guided = pipe.do_classifier_free_guidance
        found = {"prompt_embeds": _replaced(tensors["prompt_embeds"], states, guided)}
        if pooled is not None:
            found["add_text_embeds"] = _replaced(tensors["add_text_embeds"], pooled, guided)
        return found


def _replaced(old: Tensor, new: Tensor, guided: bool) -> Tensor:
    """`new` in each row of (B, ...), or, under guidance, in the second half of the rows."""
    kept = old.chunk(2)[0] if guided else old[:0]
    return torch.cat([kept, new.to(old).expand(len(old) - len(kept), *new.shape)])


def stock_arguments(
    pipe: Any,
    cards: MixingWeights | Sequence[MixingWeights],
    prompt: str | None = None,
    *,
    negative_prompt: str = "",
    num_images: int = 1,
    guidance_scale: float | None = None,
) -> dict[str, Any]:
    """What to call a stock pipeline with: `pipe(**stock_arguments(pipe, card), generator=...)`.

    Args:
        pipe: a diffusers StableDiffusionPipeline or StableDiffusionXLPipeline.
        cards: one edit or several.
        prompt: what to draw; None is the first edit's neutral prompt.
        negative_prompt: what to move away from.
        num_images: images.
        guidance_scale: None is the first edit's.

    Raises:
        MixingError: an edit was learned in another base model or with another scheduler, edits do not belong together,
            or a prompt is longer than a encoder.
    """
    cards = [cards] if isinstance(cards, MixingWeights) else list(cards)
    weights = joined_weights(cards)
    for card in cards:
        card.check(pipe)
    texts = [prompt if prompt is not None else cards[0].neutral]
    texts += [card.neutral for card in cards] + [card.styled for card in cards]
    check_lengths(text_encoders_of(pipe), [*texts, negative_prompt])
    states, pooled, negative, negative_pooled = _encoded(pipe, texts, negative_prompt)
    num_cards = len(cards)
    directions = Directions(
        states[1 + num_cards :] - states[1 : 1 + num_cards],
        None if pooled is None else pooled[1 + num_cards :] - pooled[1 : 1 + num_cards],
    )
    edit = StockEdit(states[0], None if pooled is None else pooled[0], weights.to(states.device), directions)
    first, first_pooled = edit.condition(0)
    arguments: dict[str, Any] = {
        "prompt_embeds": first.expand(num_images, *first.shape),
        "negative_prompt_embeds": negative.expand(num_images, *negative.shape[1:]),
        "num_inference_steps": weights.shape[1],
        "guidance_scale": cards[0].guidance_scale if guidance_scale is None else guidance_scale,
        "callback_on_step_end": edit,
        "callback_on_step_end_tensor_inputs": edit.tensor_inputs,
    }
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
