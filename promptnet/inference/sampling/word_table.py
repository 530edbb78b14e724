"""The words of a whole drawing at once, where an encoder does not look at the latents.

Without noise (`with_noise=False`) S* depends on the reference image and on t alone (arXiv 2305.13579, section 3.1, with
the reference in place of x_t). So the encoder runs once for a drawing, on all steps and people in one batch, instead of
once in every evaluation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.subject.lora import LoRALayers, RowLoRAs, apply_loras

MOST_ROWS = 64  # of one call of the encoder


class WordTable:
    """S* of some reference images at some timesteps.

    Args:
        promptnet: an encoder with `with_noise=False`.
        keys: for each word what it depends on: words of equal keys are made once.
        latents: (N, C, h, w), the reference of each word.
        vision_states: (N, T, V), of each.
        loras: the encoder's LoRA layers of each.
        timesteps: of the drawing.
    """

    def __init__(
        self,
        promptnet: Any,
        keys: Sequence[Any],
        latents: Tensor,
        vision_states: Tensor,
        loras: Sequence[LoRALayers | None],
        timesteps: Sequence[Tensor],
    ) -> None:
        places = {key: place for place, key in reversed(list(enumerate(keys)))}  # of each one's first word
        first = sorted(places.values())
        self._rows = [first.index(places[key]) for key in keys]
        levels = list(dict.fromkeys(float(timestep) for timestep in timesteps))
        pairs = [(place, level) for level in levels for place in first]
        parts = []
        for start in range(0, len(pairs), MOST_ROWS):
            owners, times = zip(*pairs[start : start + MOST_ROWS], strict=True)
            rows = torch.tensor(owners, device=latents.device)
            given = torch.tensor(times, device=latents.device)
            with apply_loras(promptnet, RowLoRAs(tuple(loras[owner] for owner in owners))):
                parts.append(promptnet(latents[rows], given, vision_states[rows]).pseudo_words)
        words = torch.cat(parts).unflatten(0, (len(levels), len(first)))  # (levels, U, L, D)
        self._words = dict(zip(levels, words, strict=True))

    def at(self, timestep: Tensor) -> Tensor:
        """S* of all words at a timestep of the drawing, (N, L, D)."""
        return self._words[float(timestep)][self._rows]
