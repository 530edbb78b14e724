"""Judges: small networks that read an avatar's record from its pixels, and what no word of the record says.

Two are trained, alike but apart (checkpoints/judges): `validation` may be looked at by validation and tuning, `test` is
loaded by nothing but `promptnet evaluate`. Both see real renders only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

JUDGE_SIZE_PX = 64
"""The size at which judges read."""


class FieldHeads(nn.Module):
    """One linear classifier a field, on features (B, width).

    Args:
        width: of the features.
        fields: field name to its values, for example `promptnet.datasets.avatars.person.FIELDS`.
    """

    def __init__(self, width: int, fields: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({field: nn.Linear(width, len(values)) for field, values in fields.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, number of values) for every field."""
        return {field: head(features) for field, head in self.heads.items()}

    def loss(self, features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over all fields said.

        Args:
            features: (B, width).
            codes: (B, number of fields) int64, the value's place in its field; -1 means "not said" and is left out.
        """
        losses = [
            F.cross_entropy(logits, codes[:, i], ignore_index=-1, reduction="sum")
            for i, logits in enumerate(self(features).values())
        ]
        return torch.stack(losses).sum() / (codes >= 0).sum().clamp_min(1)

    def accuracies(self, features: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Share of rows whose field is read right, for every field."""
        return {
            field: (logits.argmax(1) == codes[:, i]).float().mean()
            for i, (field, logits) in enumerate(self(features).items())
        }


@dataclass(frozen=True)
class JudgeReading:
    """What a judge sees in B images.

    Attributes:
        words: logits (B, number of values) of each field.
        exact: (B, E), `promptnet.datasets.avatars.vectors.exact_of`: colours in CIELAB / 50 - 1, and geometry.
        shape: (B, S) of unit length: who is drawn, whatever the colours, expression, glasses, clothes and background.
    """

    words: dict[str, torch.Tensor]
    exact: torch.Tensor
    shape: torch.Tensor


class AvatarJudge(ModelMixin, ConfigMixin):
    """Eight convolutions, from 64 px images to features, and linear heads: a classifier a field, exact values, shape.

    Args:
        fields: field name to its values (kept in the config, so a saved judge knows what it reads).
        width: channels of the first convolution; the last has four times as many.
        num_exact: length of `exact`.
        shape_width: length of `shape`.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, fields: dict[str, list[str]], width: int = 48, num_exact: int = 19, shape_width: int = 64
    ) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 2 * width, 3 * width, 3 * width, 4 * width, 4 * width]
        strides = [2, 1, 2, 1, 2, 1, 2, 1]
        layers: list[nn.Module] = []
        for before, after, stride in zip([3, *widths[:-1]], widths, strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(4 * width * 16, 4 * width)
        self.classifiers = FieldHeads(4 * width, {name: tuple(values) for name, values in fields.items()})
        self.exact = nn.Linear(4 * width, num_exact)
        self.shape = nn.Linear(4 * width, shape_width)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the judge sees in images (B, 3, 64, 64) in [-1, 1]: (B, F), the space in which distances are taken.

        Raises:
            ValueError: for images of another size; bring them to 64 px first.
        """
        if pixels.shape[1:] != (3, 64, 64):
            raise ValueError(f"the judge reads images (B, 3, 64, 64), got {tuple(pixels.shape)}; resize them first")
        return F.silu(self.project(self.trunk(pixels).flatten(1)))  # (B, 4 width, 4, 4) -> (B, 4 width)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, number of values) for every field, of images (B, 3, 64, 64) in [-1, 1]."""
        return self.classifiers(self.features(pixels))

    def look(self, pixels: torch.Tensor) -> JudgeReading:
        """Read all that the judge knows from images (B, 3, 64, 64) in [-1, 1]."""
        features = self.features(pixels)
        shape = F.normalize(self.shape(features), dim=-1)
        return JudgeReading(self.classifiers(features), self.exact(features), shape)

    @torch.no_grad()
    def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
        """The record that the judge reads from each image (B, 3, 64, 64) in [-1, 1]."""
        choices = {field: logits.argmax(1).tolist() for field, logits in self(pixels).items()}
        values: dict[str, list[str]] = self.config["fields"]
        return [{field: values[field][chosen[b]] for field, chosen in choices.items()} for b in range(len(pixels))]
