"""Judges of people without end: they read words, exact colours and geometry, and measure how alike shapes are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from promptnet.models.judge import AvatarJudge


@dataclass(frozen=True)
class PeopleReading:
    """What a judge sees in B images.

    Attributes:
        words: logits (B, number of values) of each field.
        exact: (B, E), `promptnet.datasets.people.vectors.exact_of`: colours in CIELAB / 50 - 1, and geometry.
        shape: (B, S) of unit length: who is drawn, whatever the colours, expression, glasses, clothes and background.
    """

    words: dict[str, torch.Tensor]
    exact: torch.Tensor
    shape: torch.Tensor


class PeopleJudge(AvatarJudge):
    """`AvatarJudge` with two more heads.

    Args:
        fields: field name to its values.
        width: channels of the first convolution; the last has four times as many.
        num_exact: length of `exact`.
        shape_width: length of `shape`.
    """

    @register_to_config
    def __init__(
        self, fields: dict[str, list[str]], width: int = 48, num_exact: int = 19, shape_width: int = 64
    ) -> None:
        super().__init__(fields=fields, width=width)
        self.exact = nn.Linear(4 * width, num_exact)
        self.shape = nn.Linear(4 * width, shape_width)

    def look(self, pixels: torch.Tensor) -> PeopleReading:
        """Read images (B, 3, 64, 64) in [-1, 1]."""
        features = self.features(pixels)
        shape = F.normalize(self.shape(features), dim=-1)
        return PeopleReading(self.classifiers(features), self.exact(features), shape)
