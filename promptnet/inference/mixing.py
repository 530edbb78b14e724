"""Edit one attribute and nothing else: a weight a step that mixes two prompts (Wu et al., arXiv 2212.08698).

At step i the U-Net is conditioned on c_i = w_i c0 + (1 - w_i) c1, where c0 is a neutral prompt ("a photo of a person")
and c1 the same with a style ("a photo of a person, smiling"). Weight 1 everywhere draws the original. A few dozen
numbers, learned once (promptnet.training.disentangle), carry over to other seeds, pictures and subjects.

For a prompt that is not c0 itself, a subject's for instance, and for several edits at once, what is mixed in is the
difference: c_i = c + sum_j (1 - w_ij) (c1_j - c0_j).
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from promptnet.inference.conditions import Networks
from promptnet.inference.fingerprint import hash_weights
from promptnet.inference.mixing_schedule import differing_settings, is_schedule, schedule_settings
from promptnet.inference.rows import Row
from promptnet.inference.sampling import Rule, Term, UNetInputs
from promptnet.inference.schedule import Step
from promptnet.inference.subject import base_name
from promptnet.models.text import PLACEHOLDER
from promptnet.models.text_encoders import TextTowers

MAX_STEPS = 10_000
# What an edit depends on: the network it was learned in, and the towers whose states it mixes.
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


class MixingError(ValueError):
    """Mixing weights, or their file, that cannot be used. The message says why, and what to do."""


def mix(neutral: Tensor, styled: Tensor, weight: float | Tensor) -> Tensor:
    """c = w c0 + (1 - w) c1, arXiv 2212.08698 section 3.1: 1 is neutral, 0 is styled, both exactly."""
    return weight * neutral + (1 - weight) * styled


def start_weights(num_steps: int, share: float = 0.4) -> Tensor:
    """The published start of the optimisation, (num_steps,): neutral for the first share of the steps, then styled."""
    return (torch.arange(num_steps) < round(share * num_steps)).float()


@dataclass(frozen=True, eq=False, repr=False)
class MixingWeights:
    """What was learned of one edit; as a file, an edit card.

    Args:
        weights: (N,), one for each denoising step, the noisiest first.
        neutral: the prompt without the attribute, c0.
        styled: the prompt with it, c1.
        scheduler: name of the scheduler's class that they were learned with.
        guidance_scale: of that drawing.
        fingerprint: component -> hash of the weights of the model they were learned in.
        base: what that model was called, for messages only.
        schedule: that scheduler's `mixing_schedule.schedule_settings`; what is not there is not checked.

    Raises:
        MixingError: values are not as above.
    """

    weights: Tensor
    neutral: str
    styled: str
    scheduler: str
    guidance_scale: float
    fingerprint: Mapping[str, str]
    base: str = ""
    schedule: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_values(self)

    @property
    def num_steps(self) -> int:
        return len(self.weights)

    def texts(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        names = ("neutral", "styled", "scheduler", "guidance_scale", "base")
        own = {name: getattr(self, name) for name in names}
        return {**own, "fingerprint": dict(self.fingerprint), "schedule": dict(self.schedule)}

    def at_steps(self, num_steps: int) -> Self:
        """The same edit in another number of steps.

        Each new weight is the mean of the old ones over its share of the drawing, so the mean stays, and a switch from
        1 to 0 stays where it was.

        Raises:
            MixingError: the number is not above 0.
        """
        if not 0 < num_steps <= MAX_STEPS:
            raise MixingError(f"num_steps={num_steps} must be between 1 and {MAX_STEPS}.")
        if num_steps == self.num_steps:
            return self
        return replace(self, weights=_resampled(self.weights, num_steps))

    def scaled(self, strength: float) -> Self:
        """The edit dialled: 0 is the original, 1 as learned, more is more.

        Raises:
            MixingError: the strength is not a finite number.
        """
        if not math.isfinite(strength):
            raise MixingError(f"strength={strength} must be a finite number: 0 is the original, 1 as learned.")
        return replace(self, weights=1 - strength * (1 - self.weights))

    def check(self, pipe: Any, num_steps: int | None = None) -> None:
        """Refuse a pipeline that these weights were not learned in.

        Args:
            pipe: a diffusers pipeline.
            num_steps: of the drawing, if it is known.

        Raises:
            MixingError: base model, scheduler, its settings or number of steps differ.
        """
        found = edit_fingerprint(pipe)
        differing = [name for name in {**self.fingerprint, **found} if self.fingerprint.get(name) != found.get(name)]
        if differing:
            here = base_name(pipe)
            raise MixingError(
                f"The edit {self.styled!r} was learned in another base model{f' ({self.base})' if self.base else ''} "
                f"than this one{f' ({here})' if here else ''}: the weights of {', '.join(differing)} differ. Load the "
                "base model it was learned in, or learn it again with `promptnet optimize-edit`."
            )
        name = type(pipe.scheduler).__name__
        if name != self.scheduler:
            raise MixingError(
                f"The edit {self.styled!r} was learned with the scheduler {self.scheduler}, but the pipeline has "
                f"{name}: set pipe.scheduler = {_how_to_make(self.scheduler)}."
            )
        _check_schedule(self, schedule_settings(pipe.scheduler))
        if num_steps is not None and num_steps != self.num_steps:
            raise MixingError(
                f"The edit {self.styled!r} has {self.num_steps} weights, but the drawing {num_steps} steps: "
                f"draw in {self.num_steps} steps, or use .at_steps({num_steps})."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit card, one small safetensors file; an old file is replaced whole.

        Raises:
            MixingError: the folder does not exist, or the file cannot be written.
        """
        from promptnet.inference.mixing_file import save_card

        save_card(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MixingWeights":
        """Read an edit card, believing nothing in it before it was checked.

        Raises:
            MixingError: missing, broken, altered, of another version, or not an edit card at all.
        """
        from promptnet.inference.mixing_file import load_card

        return load_card(Path(path))

    def __repr__(self) -> str:
        return (
            f"MixingWeights({self.neutral!r} -> {self.styled!r}, {self.num_steps} steps of {self.scheduler}, "
            f"base={self.base!r})"
        )


def _check_schedule(card: MixingWeights, found: Mapping[str, Any]) -> None:
    """Weights belong to noise levels, and so to whatever decides these."""
    for name in differing_settings(card.schedule, found):
        raise MixingError(
            f"The edit {card.styled!r} was learned with a {card.scheduler} of {name}={card.schedule[name]!r}, but the "
            f"pipeline's has {name}={found[name]!r}: take the base model's own scheduler settings, "
            f"pipe.scheduler = {_how_to_make(card.scheduler)}."
        )


def _how_to_make(scheduler: str) -> str:
    return f"promptnet.inference.inversion.make_scheduler({scheduler!r}, pipe.scheduler.config)"


def edit_fingerprint(pipe: Any) -> dict[str, str]:
    """The hash of each component of a pipeline that an edit depends on, by the component's name."""
    found = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {name: hash_weights(network, name) for name, network in found.items() if network is not None}


def weight_place(index: int, num_calls: int, num_weights: int, *, shared: bool = False) -> int:
    """Which weight is for scheduler call `index`.

    Args:
        index: of the call.
        num_calls: that the scheduler makes.
        num_weights: one for each step.
        shared: whether its first two calls belong to one step, as PLMS's do; as published, they share its weight.

    Raises:
        MixingError: the numbers of calls and weights do not fit.
    """
    if num_calls != num_weights + shared:
        raise MixingError(
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


def text_directions(cards: Sequence[MixingWeights], networks: Networks) -> Directions:
    """The directions of edits in the text towers' states, and in SDXL's pooled ones.

    Raises:
        ValueError: a prompt is longer than a tower.
    """
    prompts = [card.neutral for card in cards] + [card.styled for card in cards]
    check_lengths(networks.towers, prompts)
    encoded = networks.towers.encode(prompts, device=networks.device)
    neutral, styled = encoded.hidden_states.to(networks.dtype).chunk(2)  # (J, T, D)
    if encoded.pooled is None:
        return Directions(styled - neutral)
    pooled_neutral, pooled_styled = encoded.pooled.to(networks.dtype).chunk(2)  # (J, P)
    return Directions(styled - neutral, pooled_styled - pooled_neutral)


def check_lengths(towers: TextTowers, prompts: Sequence[str]) -> None:
    """Refuse prompts that would be cut off, and the edit with them.

    Raises:
        MixingError: a prompt is longer than a tower.
    """
    for tower in towers.towers:
        for prompt in prompts:
            num_tokens = len(tower.tokenizer(prompt).input_ids)
            if num_tokens > tower.max_length:
                raise MixingError(_too_long(prompt, num_tokens, tower.max_length))


def check_row_lengths(rows: Sequence[Row], networks: Networks) -> None:
    """The same of rows to draw with an edit, where a placeholder takes as many tokens as it has pseudo-words.

    Raises:
        MixingError: a prompt is longer than a tower.
    """
    for row in rows:
        check_lengths(
            networks.towers, [row.negative_prompt or "", row.reference_prompt if row.subjects else row.prompt]
        )
        for subject in row.subjects.values():
            num_words: int = networks.promptnet.num_pseudo_words(*subject.reference_latents.shape[2:])
            _check_length_with_words(networks.towers, row.prompt, num_words)


def _check_length_with_words(towers: TextTowers, prompt: str, num_words: int) -> None:
    pieces = PLACEHOLDER.split(prompt)
    for tower in towers.towers:
        texts = tower.tokenizer(pieces, add_special_tokens=False).input_ids
        num_tokens = 2 + sum(map(len, texts)) + num_words * (len(pieces) - 1)  # 2: start and end
        if num_tokens > tower.max_length:
            raise MixingError(_too_long(prompt, num_tokens, tower.max_length))


def _too_long(prompt: str, num_tokens: int, longest: int) -> str:
    return f"The prompt {prompt!r} has {num_tokens} tokens, but the text tower reads {longest}: shorten it."


@dataclass(frozen=True, eq=False)
class Mixing(Rule):
    """Edits in every term but the unconditional one; put it behind the guidance that makes the terms.

    Args:
        weights: (J, N), of J edits in N steps; a tensor that is being learned gets its gradient.
        directions: of the J edits.
        spared: roles of terms that stay as they are.
    """

    weights: Tensor
    directions: Directions
    spared: tuple[str, ...] = ("uncond",)

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
            raise MixingError(
                f"Conditions have shape {tuple(found.encoder_hidden_states.shape[1:])}, but the edits "
                f"{tuple(states.shape)}: encode both with this base model's text tower, padded to its length."
            )
        extra = found.extra
        if pooled is not None:
            added = extra["added_cond_kwargs"]
            extra = {**extra, "added_cond_kwargs": {**added, "text_embeds": added["text_embeds"] + pooled}}
        return replace(found, encoder_hidden_states=found.encoder_hidden_states + states, extra=extra)

    return replace(term, inputs=inputs)


def joined_weights(cards: Sequence[MixingWeights]) -> Tensor:
    """The weights of edits that are to act together, (J, N).

    Raises:
        MixingError: there are none, or they were learned in different models, with different schedulers or numbers of
            steps.
    """
    if not cards:
        raise MixingError("There is no edit: give one or several.")
    first = cards[0]
    for other in cards[1:]:
        _check_same_kind(first, other)
    return torch.stack([card.weights for card in cards])


def mixing_rule(cards: Sequence[MixingWeights], networks: Networks) -> Mixing:
    """The rule of these edits; `networks` are those that encode the prompts.

    Raises:
        ValueError: the edits do not belong together, or a prompt is longer than the tower.
    """
    return Mixing(joined_weights(cards).to(networks.device), text_directions(cards, networks))


def learned_knobs(cards: Sequence[MixingWeights]) -> dict[str, Any]:
    """Knobs of the drawing that the first edit was learned in, plain guidance of DDIM; none without an edit."""
    if not cards:
        return {}
    own = {"num_inference_steps": cards[0].num_steps, "guidance_scale": cards[0].guidance_scale}
    return {**own, "guidance_rescale": 0.0, "eta": 0.0}


def _check_same_kind(first: MixingWeights, other: MixingWeights) -> None:
    if dict(first.fingerprint) != dict(other.fingerprint):
        raise MixingError(f"The edits {first.styled!r} and {other.styled!r} were learned in different base models.")
    if first.scheduler != other.scheduler:
        raise MixingError(
            f"The edits {first.styled!r} and {other.styled!r} were learned with different schedulers, "
            f"{first.scheduler} and {other.scheduler}: learn one of them again with the other's."
        )
    for name in differing_settings(first.schedule, other.schedule):
        raise MixingError(
            f"The edits {first.styled!r} and {other.styled!r} were learned with different settings of the scheduler, "
            f"{name}={first.schedule[name]!r} and {other.schedule[name]!r}: learn one of them again with the other's."
        )
    if first.num_steps != other.num_steps:
        raise MixingError(
            f"The edits {first.styled!r} and {other.styled!r} have {first.num_steps} and {other.num_steps} weights: "
            f"bring the second to as many with .at_steps({first.num_steps})."
        )


def _resampled(weights: Tensor, num_steps: int) -> Tensor:
    """Means of a step function (N,) over `num_steps` equal parts of its range."""
    edges = torch.linspace(0, 1, len(weights) + 1, dtype=torch.float64)
    new_edges = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    upper = torch.minimum(new_edges[1:, None], edges[None, 1:])
    lower = torch.maximum(new_edges[:-1, None], edges[None, :-1])
    shares = (upper - lower).clamp_min(0) * num_steps  # (num_steps, N), rows sum to 1
    return (shares @ weights.detach().cpu().double()).to(weights)


def _check_values(card: MixingWeights) -> None:
    weights = card.weights
    if not isinstance(weights, Tensor) or weights.ndim != 1 or not 0 < len(weights) <= MAX_STEPS:
        shape = list(getattr(weights, "shape", []))
        raise MixingError(
            f"weights must be numbers (N,), one for each of 1 to {MAX_STEPS} steps, not of shape {shape}."
        )
    if weights.dtype not in (torch.float32, torch.float64):
        raise MixingError(f"weights must be float32 or float64, not {weights.dtype}.")
    if not weights.isfinite().all():
        raise MixingError("weights that are not finite: learn the edit again with a lower learning rate.")
    for name in ("neutral", "styled", "scheduler", "base"):
        text = getattr(card, name)
        if not isinstance(text, str) or (name == "scheduler" and not text.isidentifier()):
            raise MixingError(f"{name}={text!r} must be a text.")
    scale = card.guidance_scale
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise MixingError(f"guidance_scale={scale!r} must be a finite number.")
    if not is_schedule(card.schedule):
        raise MixingError(f"schedule={card.schedule!r} must be settings of a scheduler.")
    pairs = card.fingerprint.items() if isinstance(card.fingerprint, Mapping) else ((None, None),)
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise MixingError("The fingerprint must hold a hash for each component's name.")
