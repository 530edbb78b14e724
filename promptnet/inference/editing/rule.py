"""Edit cards as a rule of the sampling loop (Wu et al., arXiv 2212.08698)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.editing.card import EditCard, EditError
from promptnet.inference.editing.schedule_settings import differing_settings
from promptnet.inference.sampling.conditions import Networks
from promptnet.inference.sampling.loop import Rule, Term, UNetInputs
from promptnet.inference.sampling.phases import Phase, Role
from promptnet.inference.sampling.requests import Request
from promptnet.inference.sampling.schedule import Step
from promptnet.inference.subject.fingerprint import differing
from promptnet.models.placeholders import check_letters
from promptnet.models.text import PLACEHOLDER
from promptnet.models.text_encoders import TextEncoders


def mix(neutral: Tensor, styled: Tensor, weight: float | Tensor) -> Tensor:
    """c = w c0 + (1 - w) c1, arXiv 2212.08698 section 3.1: 1 is neutral, 0 is styled, both exactly."""
    return weight * neutral + (1 - weight) * styled


def weight_place(index: int, num_calls: int, num_weights: int, *, shared: bool = False) -> int:
    """Which weight is for scheduler call `index`.

    Args:
        index: of the call.
        num_calls: that the scheduler makes.
        num_weights: one for each step.
        shared: whether its first two calls belong to one step, as PLMS's do; as published, they share its weight.

    Raises:
        EditError: the numbers of calls and weights do not fit.
    """
    if num_calls != num_weights + shared:
        raise EditError(
            f"There are {num_weights} mixing weights, but the scheduler makes {num_calls} calls"
            f"{f' for {num_calls - 1} steps' if shared else ''}: draw in {num_weights} steps or use .at_steps(...), "
            "with DDIM, PNDM with skip_prk_steps, DPM-Solver++ or Euler."
        )
    return max(index - shared, 0)


@dataclass(frozen=True, eq=False)
class Directions:
    """What J edits add to a condition when their weights are 0.

    Args:
        states: (J, T, D), c1_j - c0_j.
        pooled: (J, P), the same of SDXL's pooled states, or None.
    """

    states: Tensor
    pooled: Tensor | None = None

    def total(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """sum_j (1 - w_j) (c1_j - c0_j), (T, D) and (P,), of weights (J,)."""
        rest = (1 - weights).to(self.states)
        pooled = None if self.pooled is None else torch.einsum("j,jp->p", rest, self.pooled)
        return torch.einsum("j,jtd->td", rest, self.states), pooled


def text_directions(cards: Sequence[EditCard], networks: Networks) -> Directions:
    """The directions of edits in the text encoders' states, and in SDXL's pooled ones.

    Raises:
        ValueError: a prompt is longer than a encoder.
    """
    prompts = [card.neutral for card in cards] + [card.styled for card in cards]
    check_lengths(networks.text_encoders, prompts)
    encoded = networks.text_encoders.encode(prompts, device=networks.device)
    neutral, styled = encoded.hidden_states.to(networks.dtype).chunk(2)  # (J, T, D)
    if encoded.pooled is None:
        return Directions(styled - neutral)
    pooled_neutral, pooled_styled = encoded.pooled.to(networks.dtype).chunk(2)  # (J, P)
    return Directions(styled - neutral, pooled_styled - pooled_neutral)


def check_lengths(text_encoders: TextEncoders, prompts: Sequence[str]) -> None:
    """Refuse prompts that would be cut off, and the edit with them.

    Raises:
        EditError: a prompt is longer than a encoder.
    """
    for text_encoder in text_encoders.text_encoders:
        for prompt in prompts:
            check_letters(prompt)
            num_tokens = len(text_encoder.tokenizer(prompt).input_ids)
            if num_tokens > text_encoder.max_length:
                raise EditError(_too_long(prompt, num_tokens, text_encoder.max_length))


def check_request_lengths(rows: Sequence[Request], networks: Networks) -> None:
    """The same of rows to draw with an edit, where a placeholder takes as many tokens as it has pseudo-words.

    Raises:
        EditError: a prompt is longer than a encoder.
    """
    for row in rows:
        check_lengths(
            networks.text_encoders, [row.negative_prompt or "", row.reference_prompt if row.subjects else row.prompt]
        )
        for subject in row.subjects.values():
            _check_length_with_words(networks.text_encoders, row.prompt, subject.num_words(networks.promptnet))


def _check_length_with_words(text_encoders: TextEncoders, prompt: str, num_words: int) -> None:
    pieces = PLACEHOLDER.split(prompt)
    for text_encoder in text_encoders.text_encoders:
        texts = text_encoder.tokenizer(pieces, add_special_tokens=False).input_ids
        num_tokens = 2 + sum(map(len, texts)) + num_words * (len(pieces) - 1)  # 2: start and end
        if num_tokens > text_encoder.max_length:
            raise EditError(_too_long(prompt, num_tokens, text_encoder.max_length))


def _too_long(prompt: str, num_tokens: int, longest: int) -> str:
    return f"The prompt {prompt!r} has {num_tokens} tokens, but the text encoder reads {longest}: shorten it."


@dataclass(frozen=True, eq=False)
class Mixing(Rule):
    """Edits in every term but the unconditional one.

    Args:
        weights: (J, N), of J edits in N steps; a tensor that is being learned gets its gradient.
        directions: of the J edits.
        spared: roles of terms that stay as they are.
    """

    phase = Phase.EDIT

    weights: Tensor
    directions: Directions
    spared: tuple[Role, ...] = (Role.UNCOND,)

    def terms(self, terms: list[Term], step: Step) -> list[Term]:
        num_weights = self.weights.shape[1]
        # One call more is PLMS's alone, whose second call leads to the level that it starts from.
        shared = step.num_steps == num_weights + 1 and (step.index != 1 or step.alpha == step.alpha_prev)
        place = weight_place(step.index, step.num_steps, num_weights, shared=shared)
        states, pooled = self.directions.total(self.weights[:, place])
        return [term if term.role in self.spared else _shifted(term, states, pooled) for term in terms]


def _shifted(term: Term, states: Tensor, pooled: Tensor | None) -> Term:
    """The term with (T, D) added to its states, and (P,) to SDXL's pooled ones."""

    def inputs(x: Tensor, step: Step) -> UNetInputs:
        found = term.inputs(x, step)
        if found.encoder_hidden_states.shape[1:] != states.shape:
            raise EditError(
                f"Conditions have shape {tuple(found.encoder_hidden_states.shape[1:])}, but the edits "
                f"{tuple(states.shape)}: encode both with this base model's text encoder, padded to its length."
            )
        extra = found.extra
        if pooled is not None:
            added = extra["added_cond_kwargs"]
            extra = {**extra, "added_cond_kwargs": {**added, "text_embeds": added["text_embeds"] + pooled}}
        return replace(found, encoder_hidden_states=found.encoder_hidden_states + states, extra=extra)

    return replace(term, inputs=inputs)


def joined_weights(cards: Sequence[EditCard]) -> Tensor:
    """The weights of edits that are to act together, (J, N).

    Raises:
        EditError: there are none, or they were learned in different models, with different schedulers or numbers of
            steps.
    """
    if not cards:
        raise EditError("There is no edit: give one or several.")
    first = cards[0]
    for other in cards[1:]:
        _check_same_kind(first, other)
    return torch.stack([card.weights for card in cards])


def mixing_rule(cards: Sequence[EditCard], networks: Networks) -> Mixing:
    """The rule of these edits; `networks` are those that encode the prompts.

    Raises:
        ValueError: the edits do not belong together, or a prompt is longer than the encoder.
    """
    return Mixing(joined_weights(cards).to(networks.device), text_directions(cards, networks))


def learned_config(cards: Sequence[EditCard]) -> dict[str, Any]:
    """Parameters of the drawing that the first edit was learned in, plain guidance of DDIM; none without an edit."""
    if not cards:
        return {}
    own = {"num_inference_steps": cards[0].num_steps, "guidance_scale": cards[0].guidance_scale}
    return {**own, "guidance_rescale": 0.0, "guidance_interval": (0.0, 1.0), "eta": 0.0}


def _check_same_kind(first: EditCard, other: EditCard) -> None:
    if differing(first.fingerprint, other.fingerprint):
        raise EditError(f"The edits {first.styled!r} and {other.styled!r} were learned in different base models.")
    if first.scheduler != other.scheduler:
        raise EditError(
            f"The edits {first.styled!r} and {other.styled!r} were learned with different schedulers, "
            f"{first.scheduler} and {other.scheduler}: learn one of them again with the other's."
        )
    for name in differing_settings(first.schedule, other.schedule):
        raise EditError(
            f"The edits {first.styled!r} and {other.styled!r} were learned with different settings of the scheduler, "
            f"{name}={first.schedule[name]!r} and {other.schedule[name]!r}: learn one of them again with the other's."
        )
    if first.num_steps != other.num_steps:
        raise EditError(
            f"The edits {first.styled!r} and {other.styled!r} have {first.num_steps} and {other.num_steps} weights: "
            f"bring the second to as many with .at_steps({first.num_steps})."
        )
