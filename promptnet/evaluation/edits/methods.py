"""The methods of the evaluation of edits, and each of them for one edit: what decides its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from promptnet.evaluation.edits.cards import DDIM
from promptnet.evaluation.edits.tasks import Edit
from promptnet.evaluation.method_names import EDIT_METHODS, EIGHT, LEDITS, ONE, STYLED
from promptnet.inference.editing.card import EditCard, start_weights

METHODS = EDIT_METHODS
LEARNED = (ONE, EIGHT)
LEDITS_EDITS = ("happy", "sunglasses")
"""The baseline's editing prompt for each edit."""
SWITCH_FRACTION = 0.4
ORIGINAL = "original"


@dataclass(frozen=True)
class EditMethod:
    """One method for one edit, as the image cache and the renderer know it.

    Args:
        name: of the method.
        kind: unedited, with a card, or by LEDITS++.
        edit: the edit; None for the original.
        card: the weights, where there are any.
        correction_end: of inverted images.
        guidance_scale: of methods without a card.
        source: "subject" if images depend on an encoder as well.
        encoder: its name.
        parameters: none.
        scheduler: of methods without a card.
    """

    name: str
    kind: Literal["original", "card", "ledits"]
    edit: Edit | None = None
    card: EditCard | None = None
    correction_end: float = 1.0
    guidance_scale: float = 0.0
    source: str = "edit"
    encoder: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = DDIM

    def record(self) -> dict[str, Any]:
        """Return what decides the images beside the base model; the scheduler only if it is not DDIM."""
        scheduler = self.scheduler if self.card is None else self.card.scheduler
        kind = {"kind": self.kind} if scheduler == DDIM else {"kind": self.kind, "scheduler": scheduler}
        if self.kind == "original":
            return {**kind, "guidance_scale": self.guidance_scale}
        assert self.edit is not None
        if self.card is None:
            return {**kind, "styled": self.edit.styled, "guidance_scale": self.guidance_scale}
        card = self.card
        weights = [round(weight, 7) for weight in card.weights.tolist()]
        prompts = {"neutral": card.neutral, "styled": card.styled, "guidance_scale": card.guidance_scale}
        return {**kind, **prompts, "weights": weights, "correct_until": self.correction_end}


def fixed_weights(method: str, num_steps: int) -> torch.Tensor:
    """Return the weights (N,) of the methods that learn nothing."""
    return torch.zeros(num_steps) if method == STYLED else start_weights(num_steps, SWITCH_FRACTION)


def make_edit_methods(
    methods: Sequence[str], edits: Sequence[Edit], cards: Mapping[tuple[str, str], EditCard], correction_end: float
) -> list[EditMethod]:
    """Return every method for every edit that it applies to; `cards` by method and edit."""
    edit_methods = []
    for edit in edits:
        for method in methods:
            if method != LEDITS:
                edit_methods.append(EditMethod(method, "card", edit, cards[method, edit.name], correction_end))
            elif edit.name in LEDITS_EDITS:
                card = cards[EIGHT, edit.name]
                edit_methods.append(
                    EditMethod(method, "ledits", edit, guidance_scale=card.guidance_scale, scheduler=card.scheduler)
                )
    return edit_methods


def check_methods(names: Sequence[str] | None) -> list[str]:
    """Return the methods of these names, in order; None is all.

    Raises:
        ValueError: unknown method.
    """
    for name in names or []:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}: choose from {', '.join(METHODS)}")
    return [method for method in METHODS if names is None or method in names]
