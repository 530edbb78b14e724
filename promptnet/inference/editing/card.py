"""Edit one attribute and nothing else: a weight a step that mixes two prompts (Wu et al., arXiv 2212.08698).

At step i the U-Net is conditioned on c_i = w_i c0 + (1 - w_i) c1, where c0 is a neutral prompt ("a photo of a person")
and c1 the same with a style ("a photo of a person, smiling"). Weight 1 everywhere draws the original. A few dozen
numbers, learned once (promptnet.training.editing.stage), carry over to other seeds, images and subjects.

For a prompt that is not c0 itself, a subject's for instance, and for several edits at once, what is mixed in is the
difference: c_i = c + sum_j (1 - w_ij) (c1_j - c0_j).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from promptnet.inference.editing.measured import FIGURES, Measured, is_measured
from promptnet.inference.editing.schedule_settings import differing_settings, is_schedule, schedule_settings
from promptnet.inference.subject.fingerprint import differing, hashes_of
from promptnet.inference.subject.subject import base_name
from promptnet.io.artifacts import FileKind, Tensors, Texts

MAX_STEPS = 10_000
# What an edit depends on: the network it was learned in, and the encoders whose states it mixes.
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


class EditError(ValueError):
    """Mixing weights, or their file, that cannot be used. The message says why, and what to do."""


def start_weights(num_steps: int, share: float = 0.4) -> Tensor:
    """The published start of the optimisation, (num_steps,): neutral for the first share of the steps, then styled."""
    return (torch.arange(num_steps) < round(share * num_steps)).float()


@dataclass(frozen=True, eq=False, repr=False)
class EditCard:
    """What was learned of one edit; as a file, an edit card.

    Args:
        weights: (N,), one for each denoising step, the noisiest first.
        neutral: the prompt without the attribute, c0.
        styled: the prompt with it, c1.
        scheduler: name of the scheduler's class that they were learned with.
        guidance_scale: of that drawing.
        fingerprint: component -> hash of the weights of the model they were learned in.
        base: what that model was called, for messages only.
        schedule: that scheduler's `schedule_settings`; what is not there is not checked.
        measured: what is known of the edit, see `promptnet.inference.editing.measured`; empty if nobody measured.

    Raises:
        EditError: values are not as above.
    """

    weights: Tensor
    neutral: str
    styled: str
    scheduler: str
    guidance_scale: float
    fingerprint: Mapping[str, str]
    base: str = ""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_values(self)

    @property
    def num_steps(self) -> int:
        return len(self.weights)

    def texts(self) -> dict[str, Any]:
        """Everything that is not a tensor; without figures, what a card was before it could have any."""
        names = ("neutral", "styled", "scheduler", "guidance_scale", "base")
        own = {name: getattr(self, name) for name in names}
        own |= {"fingerprint": dict(self.fingerprint), "schedule": dict(self.schedule)}
        measured = {name: dict(found) for name, found in self.measured.items()}
        return {**own, "measured": measured} if measured else own

    def at_steps(self, num_steps: int) -> Self:
        """The same edit in another number of steps.

        Each new weight is the mean of the old ones over its share of the drawing, so the mean stays, and a switch from
        1 to 0 stays where it was.

        Raises:
            EditError: the number is not above 0.
        """
        if not 0 < num_steps <= MAX_STEPS:
            raise EditError(f"num_steps={num_steps} must be between 1 and {MAX_STEPS}.")
        if num_steps == self.num_steps:
            return self
        return replace(self, weights=_resampled(self.weights, num_steps))

    def scaled(self, strength: float) -> Self:
        """The edit dialled: 0 is the original, 1 as learned, more is more. Weaker than learned, nobody measured it.

        Raises:
            EditError: the strength is not a finite number.
        """
        if not math.isfinite(strength):
            raise EditError(f"strength={strength} must be a finite number: 0 is the original, 1 as learned.")
        measured = self.measured if strength >= 1 else {}
        return replace(self, weights=1 - strength * (1 - self.weights), measured=measured)

    def check(self, pipe: Any, num_steps: int | None = None) -> None:
        """Refuse a pipeline that these weights were not learned in.

        Args:
            pipe: a diffusers pipeline.
            num_steps: of the drawing, if it is known.

        Raises:
            EditError: base model, scheduler, its settings or number of steps differ.
        """
        names = differing(self.fingerprint, edit_fingerprint(pipe))
        if names:
            here = base_name(pipe)
            raise EditError(
                f"The edit {self.styled!r} was learned in another base model{f' ({self.base})' if self.base else ''} "
                f"than this one{f' ({here})' if here else ''}: the weights of {', '.join(names)} differ. Load the "
                "base model it was learned in, or learn it again with `promptnet learn-edit`."
            )
        name = type(pipe.scheduler).__name__
        if name != self.scheduler:
            raise EditError(
                f"The edit {self.styled!r} was learned with the scheduler {self.scheduler}, but the pipeline has "
                f"{name}: set pipe.scheduler = {_how_to_make(self.scheduler)}."
            )
        _check_schedule(self, schedule_settings(pipe.scheduler))
        if num_steps is not None and num_steps != self.num_steps:
            raise EditError(
                f"The edit {self.styled!r} has {self.num_steps} weights, but the drawing {num_steps} steps: "
                f"draw in {self.num_steps} steps, or use .at_steps({num_steps})."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit card, one small safetensors file; an old file is replaced whole.

        Raises:
            EditError: the folder does not exist, or the file cannot be written.
        """

        save_card(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EditCard":
        """Read an edit card, believing nothing in it before it was checked.

        Raises:
            EditError: missing, broken, altered, of another version, or not an edit card at all.
        """

        return load_card(Path(path))

    @classmethod
    def from_bytes(cls, data: bytes) -> "EditCard":
        """The edit card in the content of a file that `save` wrote, checked as `load` checks it.

        Raises:
            EditError: as `load` does.
        """
        return KIND.from_bytes(data, _assembled)

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        return KIND.to_bytes(self.texts(), {"weights": self.weights})

    def __repr__(self) -> str:
        return (
            f"EditCard({self.neutral!r} -> {self.styled!r}, {self.num_steps} steps of {self.scheduler}, "
            f"base={self.base!r})"
        )


def _check_schedule(card: EditCard, found: Mapping[str, Any]) -> None:
    """Weights belong to noise levels, and so to whatever decides these."""
    for name in differing_settings(card.schedule, found):
        raise EditError(
            f"The edit {card.styled!r} was learned with a {card.scheduler} of {name}={card.schedule[name]!r}, but the "
            f"pipeline's has {name}={found[name]!r}: take the base model's own scheduler settings, "
            f"pipe.scheduler = {_how_to_make(card.scheduler)}."
        )


def _how_to_make(scheduler: str) -> str:
    return f"promptnet.inference.editing.inversion.make_scheduler({scheduler!r}, pipe.scheduler.config)"


def edit_fingerprint(pipe: Any) -> dict[str, str]:
    """The hash of each component of a pipeline that an edit depends on, by the component's name."""
    return hashes_of(pipe, COMPONENTS)


def listed_cards(edits: Any) -> list[EditCard]:
    """One edit or several as a list.

    Raises:
        EditError: something is no edit.
    """
    cards = [edits] if isinstance(edits, EditCard) else list(edits) if isinstance(edits, (list, tuple)) else None
    if cards is None or not all(isinstance(card, EditCard) for card in cards):
        raise EditError(f"edits must be an edit or a list of them, but is {edits!r}: use EditCard.load(path).")
    return cards


def _resampled(weights: Tensor, num_steps: int) -> Tensor:
    """Means of a step function (N,) over `num_steps` equal parts of its range."""
    edges = torch.linspace(0, 1, len(weights) + 1, dtype=torch.float64)
    new_edges = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    upper = torch.minimum(new_edges[1:, None], edges[None, 1:])
    lower = torch.maximum(new_edges[:-1, None], edges[None, :-1])
    fractions = (upper - lower).clamp_min(0) * num_steps  # (num_steps, N), rows sum to 1
    return (fractions @ weights.detach().cpu().double()).to(weights)


def _check_values(card: EditCard) -> None:
    weights = card.weights
    if not isinstance(weights, Tensor) or weights.ndim != 1 or not 0 < len(weights) <= MAX_STEPS:
        shape = list(getattr(weights, "shape", []))
        raise EditError(f"weights must be numbers (N,), one for each of 1 to {MAX_STEPS} steps, not of shape {shape}.")
    if weights.dtype not in (torch.float32, torch.float64):
        raise EditError(f"weights must be float32 or float64, not {weights.dtype}.")
    if not weights.isfinite().all():
        raise EditError("weights that are not finite: learn the edit again with a lower learning rate.")
    for name in ("neutral", "styled", "scheduler", "base"):
        text = getattr(card, name)
        if not isinstance(text, str) or (name == "scheduler" and not text.isidentifier()):
            raise EditError(f"{name}={text!r} must be a text.")
    scale = card.guidance_scale
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise EditError(f"guidance_scale={scale!r} must be a finite number.")
    if not is_schedule(card.schedule):
        raise EditError(f"schedule={card.schedule!r} must be settings of a scheduler.")
    if not is_measured(card.measured):
        raise EditError(f"measured={card.measured!r} must hold {', '.join(FIGURES)} for each condition.")
    pairs = card.fingerprint.items() if isinstance(card.fingerprint, Mapping) else ((None, None),)
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise EditError("The fingerprint must hold a hash for each component's name.")


KIND = FileKind(
    key="promptnet.mixing",
    version=1,
    max_bytes=1024 * 1024,
    error=EditError,
    title="Edit card",
    noun="an edit card",
    maker="promptnet learn-edit",
    again="learn the edit again",
    mode=0o644,
)


def save_card(card: EditCard, path: Path) -> None:
    """See `EditCard.save`."""
    KIND.save(path, card.texts(), {"weights": card.weights})


def load_card(path: Path) -> EditCard:
    """See `EditCard.load`."""
    return KIND.load(path, _assembled)


def _assembled(texts: Texts, tensors: Tensors) -> EditCard:
    return EditCard(**tensors, **texts)
