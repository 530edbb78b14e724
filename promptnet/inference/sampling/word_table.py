"""The words of a whole drawing at once, where an encoder does not look at the latents.

Without noise (`with_noise=False`) S* depends on the reference image and on t alone (arXiv 2305.13579, section 3.1, with
the reference in place of x_t). So the encoder runs once for a drawing, on all steps and people in one batch, instead of
once in every evaluation. The words stay with their subject: its next drawing with as many steps makes none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.subject.lora import RowLoRAs, apply_loras
from promptnet.inference.subject.subject import Subject

MOST_ROWS = 64  # of one call of the encoder
MOST_TABLES = 4  # of one subject


@dataclass(frozen=True, eq=False)
class TableWord:
    """What words of a drawing depend on beside the step.

    Args:
        subject: whose.
        image: which of the reference images.
    """

    subject: Subject
    image: int

    @property
    def key(self) -> tuple[int, int]:
        return id(self.subject), self.image


class WordTable:
    """S* of some reference images at some timesteps.

    Args:
        promptnet: an encoder with `with_noise=False`.
        words: words of equal keys are made once.
        latents: (N, C, h, w), the reference of each word.
        vision_states: (N, T, V), of each.
        timesteps: of the drawing.
        encoder_hash: of the encoder's weights, to keep the words with their subjects; None keeps none.
    """

    def __init__(
        self,
        promptnet: Any,
        words: Sequence[TableWord],
        latents: Tensor,
        vision_states: Tensor,
        timesteps: Sequence[Tensor],
        encoder_hash: str | None = None,
    ) -> None:
        levels = tuple(dict.fromkeys(float(timestep) for timestep in timesteps))
        first = {word.key: place for place, word in reversed(list(enumerate(words)))}
        places = sorted(first.values())
        kept_as = (encoder_hash, levels, latents.dtype, latents.device)
        known = {place: words[place].subject.tables.get((*kept_as, words[place].image)) for place in places}
        tables = {place: table for place, table in known.items() if table is not None}
        missing = [place for place in places if place not in tables]
        made = _make(promptnet, words, latents, vision_states, missing, levels) if missing else ()
        for place, table in zip(missing, made, strict=True):
            tables[place] = table
            if encoder_hash is not None:
                _keep(words[place], kept_as, table)
        self._rows = [places.index(first[word.key]) for word in words]
        together = torch.stack([tables[place] for place in places], dim=1)  # (levels, U, L, D)
        self._words = dict(zip(levels, together, strict=True))

    def at(self, timestep: Tensor) -> Tensor:
        """S* of all words at a timestep of the drawing, (N, L, D)."""
        return self._words[float(timestep)][self._rows]


def _make(
    promptnet: Any,
    words: Sequence[TableWord],
    latents: Tensor,
    vision_states: Tensor,
    places: Sequence[int],
    levels: Sequence[float],
) -> Sequence[Tensor]:
    """For each place (levels, L, D), from as few calls of the encoder as there can be."""
    pairs = [(place, level) for level in levels for place in places]
    parts = []
    for start in range(0, len(pairs), MOST_ROWS):
        owners, times = zip(*pairs[start : start + MOST_ROWS], strict=True)
        rows, given = (torch.tensor(values, device=latents.device) for values in (owners, times))
        with apply_loras(promptnet, RowLoRAs(tuple(words[owner].subject.promptnet_loras for owner in owners))):
            parts.append(promptnet(latents[rows], given, vision_states[rows]).pseudo_words)
    return torch.cat(parts).unflatten(0, (len(levels), len(places))).unbind(1)


def _keep(word: TableWord, kept_as: tuple[Any, ...], table: Tensor) -> None:
    tables = word.subject.tables
    while len(tables) >= MOST_TABLES * word.subject.num_references:
        tables.pop(next(iter(tables)), None)
    tables[(*kept_as, word.image)] = table.clone()  # a view would hold everybody's
