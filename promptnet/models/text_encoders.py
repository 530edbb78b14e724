"""All text towers of a base model together: one for Stable Diffusion 1 and 2, two for SDXL.

SDXL's U-Net reads the states of both towers before their last layers, without the final norms, side by side, and the
second tower's pooled state (Podell et al., arXiv 2307.01952, section 2.1). So a pseudo-word is a part for each tower,
side by side too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from promptnet.models.prompt_tokens import Padding, PromptTokens, tokenize_prompts
from promptnet.models.text import Layer, Positions, PromptStates, encode_tokens

PseudoWords = Sequence[Mapping[str, Tensor]]
"""For each prompt, placeholder -> (L, D)."""


@dataclass(frozen=True, eq=False)
class TextTower:
    """One text tower with its tokenizer, and which of its states the U-Net wants; see `text.encode_tokens`."""

    tokenizer: Any
    network: Any
    layer: Layer = "last"
    final_norm: bool = True

    @property
    def width(self) -> int:
        """Of its token embeddings."""
        return self.network.config.hidden_size

    @property
    def max_length(self) -> int:
        """How many tokens it reads, start and end included."""
        return min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings)


@dataclass(frozen=True, eq=False)
class TextTowers:
    """The text towers of a base model, in the order in which its U-Net reads their states."""

    towers: tuple[TextTower, ...]

    @classmethod
    def of(cls, tokenizers: Sequence[Any], networks: Sequence[Any]) -> "TextTowers":
        """One tower as Stable Diffusion 1 and 2 read it, or two as SDXL does.

        Args:
            tokenizers: of the towers.
            networks: CLIP text towers; of two, the second has a projection.
        """
        pairs = list(zip(tokenizers, networks, strict=True))
        assert len(pairs) in (1, 2)
        layer: Layer = "last" if len(pairs) == 1 else "penultimate"
        return cls(tuple(TextTower(*pair, layer, final_norm=layer == "last") for pair in pairs))

    @property
    def width(self) -> int:
        """D of a pseudo-word: the sum of the towers' widths."""
        return sum(tower.width for tower in self.towers)

    def word_norm(self) -> float:
        """The L2 norm that a pseudo-word has whose parts are as long as the towers' words are on average."""
        if len(self.towers) == 1:
            return mean_word_norm(self.towers[0].network)
        return sum(mean_word_norm(tower.network) ** 2 for tower in self.towers) ** 0.5

    def encode(
        self,
        prompts: Sequence[str],
        pseudo_words: PseudoWords | None = None,
        *,
        positions: Positions = "natural",
        padding: Padding = "max_length",
        device: torch.device | None = None,
    ) -> PromptStates:
        """Tokenise prompts and encode them: `tokenize`, then `encode_tokens`.

        Raises:
            ValueError: see there.
        """
        self._split(pseudo_words)  # a wrong width is said before a long prompt
        counts = None
        if pseudo_words is not None:
            counts = [{name: len(words) for name, words in given.items()} for given in pseudo_words]
        tokens = self.tokenize(prompts, counts, padding=padding)
        return self.encode_tokens(tokens, pseudo_words, positions=positions, device=device)

    def tokenize(
        self,
        prompts: Sequence[str],
        num_pseudo_words: Sequence[Mapping[str, int]] | None = None,
        *,
        padding: Padding = "max_length",
    ) -> tuple[PromptTokens, ...]:
        """The prompts' tokens for each tower; the arguments are those of `placeholders.tokenize_prompts`.

        Raises:
            ValueError: see `tokenize_prompts`; or two tokenizers place words differently.
        """
        found = tuple(
            tokenize_prompts(tower.tokenizer, prompts, num_pseudo_words, max_length=tower.max_length, padding=padding)
            for tower in self.towers
        )
        first = found[0]
        for other in found[1:]:
            if (other.input_ids.shape, other.places) != (first.input_ids.shape, first.places):
                raise ValueError(
                    "The base model's two tokenizers cut prompts in different ways, so that the towers' states cannot "
                    "stand side by side: take both tokenizers from the base model's own folder."
                )
        return found

    def encode_tokens(
        self,
        tokens: Sequence[PromptTokens],
        pseudo_words: PseudoWords | None = None,
        *,
        positions: Positions = "natural",
        device: torch.device | None = None,
    ) -> PromptStates:
        """Encode tokenised prompts with these pseudo-words; differentiable in them.

        Args:
            tokens: one for each tower, from `tokenize`.
            pseudo_words: for each prompt, placeholder -> (L, D), D the sum of the towers' widths.
            positions: see `text.encode_tokens`.
            device: where the towers compute, default where they are.

        Returns:
            States (B, T, sum of the towers' widths); of two towers also the second's pooled state (B, P).

        Raises:
            ValueError: the pseudo-words do not fit the tokens or the towers.
        """
        parts = self._split(pseudo_words)
        return side_by_side(
            [
                encode_tokens(
                    tower.network,
                    of_tower,
                    part,
                    positions=positions,
                    layer=tower.layer,
                    final_norm=tower.final_norm,
                    device=device,
                )
                for tower, of_tower, part in zip(self.towers, tokens, parts, strict=True)
            ]
        )

    def _split(self, pseudo_words: PseudoWords | None) -> list[PseudoWords | None]:
        """Each tower's part of the pseudo-words."""
        if pseudo_words is None:
            return [None] * len(self.towers)
        widths = [tower.width for tower in self.towers]
        for given in pseudo_words:
            for name, words in given.items():
                if words.ndim != 2 or not len(words) or words.shape[1] != self.width:
                    raise ValueError(
                        f"The pseudo-words for {name} have shape {tuple(words.shape)}, but {self.width_in_words()} "
                        f"(L, {self.width}). They were made for another base model."
                    )
        rows = [{name: words.split(widths, dim=1) for name, words in given.items()} for given in pseudo_words]
        return [
            [{name: parts[place] for name, parts in given.items()} for given in rows] for place in range(len(widths))
        ]

    def width_in_words(self) -> str:
        """For messages: which towers it is that take words of this width."""
        if len(self.towers) == 1:
            return "this text tower takes"
        return f"these text towers take {' + '.join(str(tower.width) for tower in self.towers)}, that is"


def towers_of(pipe: Any) -> TextTowers:
    """The text towers of a diffusers pipeline of either kind, ours or stock."""
    suffixes = ("",) if getattr(pipe, "text_encoder_2", None) is None else ("", "_2")
    tokenizers, networks = (
        [getattr(pipe, f"{name}{suffix}") for suffix in suffixes] for name in ("tokenizer", "text_encoder")
    )
    return TextTowers.of(tokenizers, networks)


def side_by_side(states: Sequence[PromptStates]) -> PromptStates:
    """The states of one tower, or of two as one, with the last one's pooled state."""
    first, last = states[0], states[-1]
    if len(states) == 1:
        return replace(first, pooled=None)
    return replace(last, hidden_states=torch.cat([each.hidden_states for each in states], dim=-1))  # (B, T, D)


def mean_word_norm(text_encoder: Any) -> float:
    """Mean L2 norm of a text tower's token embeddings: the length that a pseudo-word should have among words."""
    weight: Tensor = text_encoder.get_input_embeddings().weight
    return 1.0 if weight.is_meta else float(weight.detach().float().norm(dim=1).mean())
