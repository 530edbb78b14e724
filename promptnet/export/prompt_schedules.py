"""An edit card as a prompt schedule of A1111, Forge and ComfyUI: text that changes once while an image is drawn.

A card has a weight for each step, and mixes the states of two prompts by it. A schedule `[neutral:styled:0.4]` has one
prompt for each step: the weights become 1 up to a step and 0 from there on. The step is chosen so that they differ
least; what is lost is said.
"""

import re
from dataclasses import dataclass

import torch

from promptnet.inference.editing.card import EditCard

LIMIT = 0.1
_SPECIAL = re.compile(r"[\[\]():|\\]")


@dataclass(frozen=True)
class PromptSchedule:
    """A prompt that changes once.

    Args:
        text: as A1111 and Forge write it.
        switch: fraction of the steps after which the second prompt holds.
        neutral: the first prompt.
        styled: the second.
        loss: mean absolute difference to the card's weights, 0 to 1.
        num_steps: of the card.
        guidance_scale: that it was learned with.
    """

    text: str
    switch: float
    neutral: str
    styled: str
    loss: float
    num_steps: int
    guidance_scale: float

    def page(self) -> str:
        """The schedule for people: the text, how to write it in ComfyUI, and what is lost."""
        said = "close to the card" if self.loss <= LIMIT else "far from the card: expect another image"
        return (
            f"{self.text}\n\n"
            f"A1111, Forge: the line above as the prompt, {self.num_steps} steps, CFG scale {self.guidance_scale:g}.\n"
            f"ComfyUI: ConditioningSetTimestepRange 0.0 to {self.switch:.3f} for the prompt {self.neutral!r}, "
            f"{min(self.switch + 0.001, 1.0):.3f} to 1.0 for {self.styled!r}, and ConditioningCombine of both.\n"
            f"Lost: the card's weights are on average {self.loss:.3f} from this switch, {said}.\n"
        )


def prompt_schedule(card: EditCard) -> PromptSchedule:
    """The switch between a card's two prompts that is nearest to its weights."""
    weights = card.weights.double()
    count = len(weights)
    errors = [float((_switched(count, place) - weights).abs().mean()) for place in range(count + 1)]
    place = min(range(count + 1), key=errors.__getitem__)
    switch = place / count
    neutral, styled = (_escaped(text) for text in (card.neutral, card.styled))
    text = f"[{neutral}:{styled}:{switch:.3g}]" if 0 < place < count else (neutral if place else styled)
    return PromptSchedule(text, switch, card.neutral, card.styled, errors[place], count, card.guidance_scale)


def _switched(count: int, place: int) -> torch.Tensor:
    return (torch.arange(count) < place).double()


def _escaped(text: str) -> str:
    """A prompt in which A1111's own signs stand for themselves."""
    return _SPECIAL.sub(lambda found: "\\" + found.group(), text)
