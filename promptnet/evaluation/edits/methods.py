"""The rows of the evaluation of edits, and each of them for one edit: what decides its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from promptnet.evaluation.edits.cards import DDIM
from promptnet.evaluation.edits.tasks import Edit
from promptnet.inference.editing.card import MixingWeights, start_weights

STYLED, SWITCH, ONE, EIGHT, LEDITS = "styled-prompt", "fixed-switch", "one-seed", "eight-seeds", "ledits++"
ROWS = (STYLED, SWITCH, ONE, EIGHT, LEDITS)
"""In the order they are printed: weights 0, weights 1 and then 0, learned on one seed, learned on several, a peer."""

LEARNED = (ONE, EIGHT)
LEDITS_EDITS = ("happy", "sunglasses")
"""What the peer is asked for."""
SWITCH_SHARE = 0.4
ORIGINAL = "original"


@dataclass(frozen=True)
class Way:
    """One row for one edit, as the gallery and the studio know it.

    Args:
        name: of the row.
        kind: drawn unedited, with a card, or by LEDITS++.
        edit: which; None for the original.
        card: the weights, where there are any.
        correct_until: of inverted pictures.
        guidance_scale: where there is no card to say it.
        source: "subject" where pictures depend on an encoder too.
        encoder: which.
        knobs: none.
        scheduler: where there is no card to say it.
    """

    name: str
    kind: Literal["original", "card", "ledits"]
    edit: Edit | None = None
    card: MixingWeights | None = None
    correct_until: float = 1.0
    guidance_scale: float = 0.0
    source: str = "edit"
    encoder: str = ""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = DDIM

    def record(self) -> dict[str, Any]:
        """What decides the pictures, beside the base model; the scheduler where it is another than DDIM."""
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
        return {**kind, **prompts, "weights": weights, "correct_until": self.correct_until}


def fixed_weights(row: str, num_steps: int) -> torch.Tensor:
    """Weights (N,) of the rows that learn nothing."""
    return torch.zeros(num_steps) if row == STYLED else start_weights(num_steps, SWITCH_SHARE)


def make_ways(
    rows: Sequence[str], edits: Sequence[Edit], cards: Mapping[tuple[str, str], MixingWeights], correct_until: float
) -> list[Way]:
    """Every row for every edit it is for; `cards` by row and edit."""
    ways = []
    for edit in edits:
        for row in rows:
            if row != LEDITS:
                ways.append(Way(row, "card", edit, cards[row, edit.name], correct_until))
            elif edit.name in LEDITS_EDITS:
                card = cards[EIGHT, edit.name]
                ways.append(Way(row, "ledits", edit, guidance_scale=card.guidance_scale, scheduler=card.scheduler))
    return ways


def check_rows(names: Sequence[str] | None) -> list[str]:
    """The rows of these names, in order; None is all.

    Raises:
        ValueError: there is no such row.
    """
    for name in names or []:
        if name not in ROWS:
            raise ValueError(f"there is no row {name!r}: choose from {', '.join(ROWS)}")
    return [row for row in ROWS if names is None or row in names]
