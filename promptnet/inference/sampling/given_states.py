"""Prompts that a caller has encoded already: `prompt_embeds` and what belongs to it, as in diffusers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.sampling.requests import Request


@dataclass(frozen=True, eq=False)
class States:
    """States of B prompts.

    Args:
        hidden: (B, T, D).
        pooled: (B, P) for SDXL, else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def repeated(self, count: int) -> "States":
        """Each prompt's states for `count` images that follow each other."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, 0)
        return States(self.hidden.repeat_interleave(count, 0), pooled)

    def of_rows(self, indices: Sequence[int], device: Any, dtype: torch.dtype) -> "States":
        """The states of some rows, where the U-Net computes."""
        places = torch.tensor(indices, device=self.hidden.device)
        pooled = None if self.pooled is None else self.pooled[places].to(device, dtype)
        return States(self.hidden[places].to(device, dtype), pooled)


@dataclass(frozen=True, eq=False)
class GivenStates:
    """What a call gives in place of texts; None where it gives texts."""

    prompt: States | None = None
    negative: States | None = None

    def repeated(self, count: int) -> "GivenStates":
        """For `count` images of each prompt."""
        given = (None if part is None else part.repeated(count) for part in (self.prompt, self.negative))
        return GivenStates(*given)


def given_states(
    width: int,
    pooled_width: int | None,
    *,
    prompt: Tensor | None,
    negative: Tensor | None,
    pooled: Tensor | None,
    negative_pooled: Tensor | None,
) -> GivenStates:
    """Check states that stand for texts.

    Args:
        width: D, of the states that the U-Net reads.
        pooled_width: P for SDXL, else None.
        prompt: `prompt_embeds`, (B, T, D).
        negative: `negative_prompt_embeds`.
        pooled: `pooled_prompt_embeds`, (B, P).
        negative_pooled: `negative_pooled_prompt_embeds`.

    Raises:
        ValueError: shapes do not fit the base model or each other.
    """
    parts = {"prompt_embeds": (prompt, pooled), "negative_prompt_embeds": (negative, negative_pooled)}
    found = [_states(name, *part, width, pooled_width) for name, part in parts.items()]
    first, second = found
    if first is not None and second is not None and len(first.hidden) != len(second.hidden):
        raise ValueError(
            f"prompt_embeds hold {len(first.hidden)} prompts, but negative_prompt_embeds {len(second.hidden)}: give as "
            "many of both."
        )
    return GivenStates(*found)


def _states(
    name: str, hidden: Tensor | None, pooled: Tensor | None, width: int, pooled_width: int | None
) -> States | None:
    pooled_name = name.replace("prompt_embeds", "pooled_prompt_embeds")
    if hidden is None:
        if pooled is not None:
            raise ValueError(f"{pooled_name} goes with {name}: give both.")
        return None
    if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[-1] != width:
        shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(f"{name} must be a tensor (B, T, {width}) for this base model, but is {shape}.")
    if pooled_width is None:
        if pooled is not None:
            raise ValueError(f"{pooled_name} is for SDXL: this base model has one text encoder.")
        return States(hidden)
    if not isinstance(pooled, Tensor) or pooled.shape != (len(hidden), pooled_width):
        shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else pooled
        raise ValueError(
            f"{pooled_name} must be a tensor ({len(hidden)}, {pooled_width}) beside {name}, but is {shape}."
        )
    return States(hidden, pooled)


def check_given(given: GivenStates, prompt: Any, negative_prompt: Any, subject: Any, edits: Sequence[Any]) -> None:
    """Refuse states beside what needs text.

    Raises:
        ValueError: text and states are given for one thing, or a subject or an edit needs the text.
    """
    if given.prompt is not None:
        if prompt:
            raise ValueError("prompt and prompt_embeds are both given: give one of them.")
        if subject is not None:
            raise ValueError("A subject needs the text of the prompt, where S* stands: give prompt, not prompt_embeds.")
    if given.negative is not None and negative_prompt is not None:
        raise ValueError("negative_prompt and negative_prompt_embeds are both given: give one of them.")
    if edits and (given.prompt is not None or given.negative is not None):
        raise ValueError("Edits need the texts of prompts: give prompt and negative_prompt, not their states.")


def check_rows(given: GivenStates, rows: Sequence[Request]) -> None:
    """Refuse negative states for another number of prompts.

    Raises:
        ValueError: names both numbers.
    """
    for part in (given.prompt, given.negative):
        if part is not None and len(part.hidden) != len(rows):
            raise ValueError(f"There are states for {len(part.hidden)} images, but {len(rows)} are asked for.")
