"""Words for each noise level, and the subject's own LoRA: what hosts can carry whose prompt may change while they draw.

S* depends on the noise level t and on the image x_t that is drawn. Here x_t is the reference image, noised: the words
depend on t alone. An encoder that does not read x_t (`with_noise=False`) loses only what lies between two levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.inference.subject.lora import LoRALayer


@dataclass(frozen=True, eq=False, repr=False)
class TimedWords:
    """A table of words.

    Args:
        words: (T, L, D), D the sum of the text encoders' widths.
        timesteps: (T,), rising; of the base model's training.
        widths: of the text encoders.
        loras: the U-Net's own, by layer, for rows that hold S*.
        fingerprint: component -> hash of the base model's weights.

    Raises:
        ExportError: shapes do not match, or the timesteps do not rise.
    """

    words: Tensor
    timesteps: Tensor
    widths: tuple[int, ...]
    loras: Mapping[str, LoRALayer] = field(default_factory=dict)
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, count = tuple(self.words.shape), self.timesteps.numel()
        if len(shape) != 3 or not self.words.numel() or shape[0] != count or shape[2] != sum(self.widths):
            raise ExportError(
                f"words must be (T, L, {sum(self.widths)}) for T = {count} timesteps and these text encoders, but are "
                f"{shape}: export the subject again."
            )
        if not bool((self.timesteps.diff() > 0).all()):
            raise ExportError("The timesteps of a word table must rise: export the subject again.")

    def at(self, timestep: float) -> Tensor:
        """Words (L, D) at a timestep, float32: linear between two levels, and the last one's beyond them."""
        levels = self.timesteps.double()
        upper = int(torch.searchsorted(levels, torch.tensor(float(timestep), dtype=levels.dtype)))
        if upper == 0 or upper == len(levels):
            return self.words[min(upper, len(levels) - 1)].float()
        share = float((timestep - levels[upper - 1]) / (levels[upper] - levels[upper - 1]))
        return torch.lerp(self.words[upper - 1].float(), self.words[upper].float(), share)

    def parts(self) -> list[Tensor]:
        """Each text encoder's part, (T, L, width)."""
        return [part.contiguous() for part in self.words.split(list(self.widths), dim=2)]

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another floating-point type."""
        loras = {name: lora.to(dtype=dtype) for name, lora in self.loras.items()}
        return replace(self, words=self.words.to(dtype), loras=loras)

    def __repr__(self) -> str:
        """What it is, and nothing that is in it."""
        return f"TimedWords(levels={len(self.words)}, words={self.words.shape[1]}, layers={len(self.loras)})"
