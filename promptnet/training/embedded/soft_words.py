"""Words between words: exact colours as mixtures of colour words' embeddings, and a person as a few pseudo-words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from promptnet.datasets.avatars.person import COLOR_FIELDS
from promptnet.datasets.avatars.vectors import COLOR_WORDS, num_record_numbers
from promptnet.datasets.stream import sample_noise

Words = list[dict[str, torch.Tensor]]
"""For each prompt, placeholder -> (L, D)."""


class SoftWords:
    """Replaces the colour words of captions by placeholders for mixtures of words.

    A mixture holds each of its field's words by how near the word's centre is to the exact colour.

    Args:
        tokenizer: in whose vocabulary every colour word is one token.

    Raises:
        ValueError: a colour word is more than one token.
    """

    def __init__(self, tokenizer: Any) -> None:
        found = [tokenizer(name, add_special_tokens=False).input_ids for _, name in COLOR_WORDS]
        split = [name for (_, name), ids in zip(COLOR_WORDS, found, strict=True) if len(ids) != 1]
        if split:
            raise ValueError(f"the tokenizer splits {', '.join(split)}: train it on more captions")
        self.ids = [ids[0] for ids in found]
        self.fields = dict(zip((name for _, name in COLOR_WORDS), (field for field, _ in COLOR_WORDS), strict=True))
        self.pattern = re.compile(rf"\b({'|'.join(self.fields)})\b")

    def of(
        self, captions: Sequence[str], weights: torch.Tensor, table: torch.Tensor, generated: Sequence[bool]
    ) -> tuple[list[str], Words]:
        """Return captions with placeholders, and the mixtures that stand for them.

        Args:
            captions: B captions.
            weights: (B, 22), `vectors.color_weights`.
            table: (V, D), the token embeddings.
            generated: for each caption, whether its colours become soft.
        """
        embeddings = table[self.ids]  # (22, D)
        prompts, words = [], []
        for text, row, is_soft in zip(captions, weights.to(table), generated, strict=True):
            named = sorted({self.fields[name] for name in self.pattern.findall(text)}) if is_soft else []
            prompts.append(self.pattern.sub(lambda match: self._placeholder(match[1]), text) if named else text)
            words.append(
                {f"S{COLOR_FIELDS.index(field) + 1}*": self._mixture(field, row, embeddings) for field in named}
            )
        return prompts, words

    def _placeholder(self, name: str) -> str:
        return f"S{COLOR_FIELDS.index(self.fields[name]) + 1}*"

    def _mixture(self, field: str, row: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        places = [place for place, (of, _) in enumerate(COLOR_WORDS) if of == field]
        return mixed(row[places].unsqueeze(0), embeddings[places])  # (1, D)


def mixed(weights: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Mix words (N, D) by rows of weights (L, N); a mixture of words is as long as they are."""
    sums, norms = weights @ words, weights @ words.norm(dim=1, keepdim=True)
    return sums * norms / sums.norm(dim=1, keepdim=True).clamp_min(1e-6)


def perturbed(words: Words, samples: torch.Tensor, deviation: float) -> Words:
    """Return pseudo-words with normal noise added, a function of the sample numbers alone.

    Args:
        words: B sets.
        samples: (B,) sample numbers.
        deviation: expected L2 norm of the noise in one word.
    """
    if deviation == 0:
        return words
    return [
        {name: word + deviation * word.shape[1] ** -0.5 * _noise(sample, name, word) for name, word in given.items()}
        for given, sample in zip(words, samples, strict=True)
    ]


def _noise(sample: torch.Tensor, name: str, word: torch.Tensor) -> torch.Tensor:
    return sample_noise(0, sample.view(1), f"perturb {name}", tuple(word.shape))[0].to(word)


class RecordEncoder(nn.Module):
    """A person's exact record as pseudo-words: what an image encoder would say, had it seen everything.

    It is trained with the U-Net, so that the base model can draw what no word says (exact colours, which of a shape's
    drawings, geometry) from a few pseudo-words, and thrown away afterwards or kept as a teacher.

    Args:
        width: D of the words.
        word_norm: at which the words are held.
        num_words: L.
        hidden: width of the two hidden layers.
    """

    def __init__(self, width: int, word_norm: float, num_words: int = 4, hidden: int = 384) -> None:
        super().__init__()
        self.num_words, self.width = num_words, width
        self.word_norm: torch.Tensor
        self.register_buffer("word_norm", torch.tensor(word_norm))
        self.layers = nn.Sequential(
            nn.Linear(num_record_numbers(), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.embedding_out = nn.Linear(hidden, num_words * width)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Records (B, N), `vectors.record_of` -> pseudo-words (B, L, D)."""
        words = self.embedding_out(self.layers(records)).view(-1, self.num_words, self.width)
        return nn.functional.normalize(words, dim=-1) * self.word_norm
