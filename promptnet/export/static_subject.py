"""A subject as a file can carry it: words that depend on nothing, and one LoRA that acts in every row.

Our own pipeline has words for each noise level and image, and adds a subject's LoRA to the rows that hold S* alone.
A host that loads files has neither: what is lost is measured in `promptnet.export.verification`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.timed import TimedWords
from promptnet.inference.subject.lora import LoRALayer

# What vLLM's helper accepts of the ranks that a subject may have.
PADDED_RANKS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, eq=False, repr=False)
class StaticSubject:
    """What file formats are written from.

    Args:
        words: (L, D), D the sum of the text encoders' widths.
        widths: of the text encoders.
        loras: the U-Net's, by layer.
        class_word: the subject's.
        fingerprint: component -> hash of the base model's weights.
        base: what the base model was called.
        recipe: how words and LoRA were made.
        timed: the words of each noise level, for formats that carry them.

    Raises:
        ExportError: the words do not fit the text encoders.
    """

    words: Tensor
    widths: tuple[int, ...]
    loras: Mapping[str, LoRALayer] = field(default_factory=dict)
    class_word: str = "person"
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    timed: TimedWords | None = None

    def __post_init__(self) -> None:
        if self.words.ndim != 2 or not len(self.words) or self.words.shape[1] != sum(self.widths):
            raise ExportError(
                f"words must be (L, {sum(self.widths)}) for these text encoders, but are {tuple(self.words.shape)}."
            )

    @property
    def rank(self) -> int:
        """R, the largest of the layers' ranks; 0 without a LoRA."""
        return max((lora.rank for lora in self.loras.values()), default=0)

    def stored_as(self, dtype: str) -> Self:
        """The same in "float32" or "float16", which rounds words and LoRA and halves their files.

        Raises:
            ExportError: a number is too large for float16.
        """
        kind: torch.dtype = getattr(torch, dtype)
        loras = {name: lora.to(dtype=kind) for name, lora in self.loras.items()}
        timed = None if self.timed is None else self.timed.to(kind)
        made = replace(self, words=self.words.to(kind), loras=loras, timed=timed)
        parts = [("words", made.words), *_factors(made.loras)]
        if timed is not None:
            parts += [("the word table", timed.words), *_factors(timed.loras)]
        if lost := [name for name, part in parts if not part.isfinite().all()]:
            raise ExportError(f"{lost[0]} holds numbers that are too large for {dtype}: write float32.")
        return made

    def word_parts(self) -> list[Tensor]:
        """Each text encoder's part of the words, (L, width)."""
        return [part.contiguous() for part in self.words.split(list(self.widths), dim=1)]

    def padded(self, rank: int | None = None) -> Self:
        """The same with one rank in all layers, filled up with zeros: loaders ignore ranks and alphas that differ.

        Args:
            rank: R; None is the largest that a layer has.

        Raises:
            ExportError: a layer has a larger rank.
        """
        rank = self.rank if rank is None else rank
        if self.rank > rank:
            raise ExportError(f"The LoRA has rank {self.rank}, which rank={rank} cannot hold.")
        return replace(self, loras={name: _padded(lora, rank) for name, lora in self.loras.items()})

    def padded_for_servers(self) -> Self:
        """The same with a rank that vLLM's reader of adapters knows, 8 or more.

        Raises:
            ExportError: there is none as large.
        """
        rank = next((rank for rank in PADDED_RANKS if rank >= self.rank), None)
        if rank is None:
            raise ExportError(f"The LoRA has rank {self.rank}, and readers of PEFT folders know {PADDED_RANKS[-1]}.")
        return self.padded(rank)

    def require_lora(self, kind: str) -> None:
        """Refuse to write a LoRA file without a LoRA.

        Raises:
            ExportError: this subject has none.
        """
        if not self.loras:
            raise ExportError(
                f"{kind}: this subject was not tuned, so it has no LoRA, and the file would do nothing. Export it "
                "distilled (--static distilled), as textual-inversion alone, or tune it with `promptnet customize`."
            )

    def __repr__(self) -> str:
        """What kind of subject it is, and nothing that is in it."""
        return (
            f"StaticSubject({self.class_word!r}, words={len(self.words)}, layers={len(self.loras)}, rank={self.rank})"
        )


def _factors(loras: Mapping[str, LoRALayer]) -> list[tuple[str, Tensor]]:
    return [(name, part) for name, lora in loras.items() for part in (lora.A, lora.B)]


def _padded(lora: LoRALayer, rank: int) -> LoRALayer:
    missing = rank - lora.rank
    return LoRALayer(F.pad(lora.A, (0, 0, 0, missing)), F.pad(lora.B, (0, missing)))
