"""All text encoders of a base model together: one for Stable Diffusion 1 and 2, two for SDXL.

SDXL's U-Net reads the states of both encoders before their last layers, without the final norms, side by side, and the
second encoder's pooled state (Podell et al., arXiv 2307.01952, section 2.1). So a pseudo-word is a part for each
encoder, side by side too.
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
class TextEncoder:
    """One text encoder with its tokenizer, and which of its states the U-Net wants; see `text.encode_tokens`."""

    tokenizer: Any
    network: Any
    layer: Layer = "last"
    final_norm: bool = True
    clip_skip: int = 0

    @property
    def width(self) -> int:
        """Of its token embeddings."""
        return self.network.config.hidden_size

    @property
    def max_length(self) -> int:
        """How many tokens it reads, start and end included."""
        return min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings)


@dataclass(frozen=True, eq=False)
class TextEncoders:
    """The text encoders of a base model, in the order in which its U-Net reads their states."""

    text_encoders: tuple[TextEncoder, ...]

    @classmethod
    def of(cls, tokenizers: Sequence[Any], networks: Sequence[Any], layer: Layer | None = None) -> "TextEncoders":
        """One encoder as Stable Diffusion 1 and 2 read it, or two as SDXL does.

        Args:
            tokenizers: of the encoders.
            networks: CLIP text encoders; of two, the second has a projection.
            layer: which states are read of one encoder, behind its final norm; default the last.
        """
        pairs = list(zip(tokenizers, networks, strict=True))
        assert len(pairs) in (1, 2)
        if len(pairs) == 1:
            return cls((TextEncoder(*pairs[0], layer or "last"),))
        return cls(tuple(TextEncoder(*pair, "penultimate", final_norm=False) for pair in pairs))

    def skipping(self, clip_skip: int | None) -> "TextEncoders":
        """These encoders read so many layers earlier, as diffusers' `clip_skip`; None is 0.

        Raises:
            ValueError: an encoder has not as many layers.
        """
        if clip_skip is None:
            return self
        layers = [
            encoder.network.config.num_hidden_layers - (encoder.layer != "last") for encoder in self.text_encoders
        ]
        if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or not 0 <= clip_skip <= min(layers):
            raise ValueError(f"clip_skip={clip_skip!r} must be a whole number from 0 to {min(layers)}.")
        return TextEncoders(tuple(replace(encoder, clip_skip=clip_skip) for encoder in self.text_encoders))

    @property
    def width(self) -> int:
        """D of a pseudo-word: the sum of the encoders' widths."""
        return sum(text_encoder.width for text_encoder in self.text_encoders)

    def word_norm(self) -> float:
        """The L2 norm that a pseudo-word has whose parts are as long as the encoders' words are on average."""
        if len(self.text_encoders) == 1:
            return mean_word_norm(self.text_encoders[0].network)
        return sum(mean_word_norm(text_encoder.network) ** 2 for text_encoder in self.text_encoders) ** 0.5

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
        """The prompts' tokens for each encoder; the arguments are those of `placeholders.tokenize_prompts`.

        Raises:
            ValueError: see `tokenize_prompts`; or two tokenizers place words differently.
        """
        found = tuple(
            tokenize_prompts(
                text_encoder.tokenizer, prompts, num_pseudo_words, max_length=text_encoder.max_length, padding=padding
            )
            for text_encoder in self.text_encoders
        )
        first = found[0]
        for other in found[1:]:
            if (other.input_ids.shape, other.places) != (first.input_ids.shape, first.places):
                raise ValueError(
                    "The base model's two tokenizers cut prompts in different ways, so that the encoders' states "
                    "cannot stand side by side: take both tokenizers from the base model's own folder."
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
            tokens: one for each encoder, from `tokenize`.
            pseudo_words: for each prompt, placeholder -> (L, D), D the sum of the encoders' widths.
            positions: see `text.encode_tokens`.
            device: where the encoders compute, default where they are.

        Returns:
            States (B, T, sum of the encoders' widths); of two encoders also the second's pooled state (B, P).

        Raises:
            ValueError: the pseudo-words do not fit the tokens or the encoders.
        """
        parts = self._split(pseudo_words)
        return side_by_side(
            [
                encode_tokens(
                    text_encoder.network,
                    of_text_encoder,
                    part,
                    positions=positions,
                    layer=text_encoder.layer,
                    final_norm=text_encoder.final_norm,
                    clip_skip=text_encoder.clip_skip,
                    device=device,
                )
                for text_encoder, of_text_encoder, part in zip(self.text_encoders, tokens, parts, strict=True)
            ]
        )

    def _split(self, pseudo_words: PseudoWords | None) -> list[PseudoWords | None]:
        """Each encoder's part of the pseudo-words."""
        if pseudo_words is None:
            return [None] * len(self.text_encoders)
        widths = [text_encoder.width for text_encoder in self.text_encoders]
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
        """For messages: which encoders it is that take words of this width."""
        if len(self.text_encoders) == 1:
            return "this text encoder takes"
        widths = " + ".join(str(text_encoder.width) for text_encoder in self.text_encoders)
        return f"these text encoders take {widths}, that is"


def text_encoders_of(pipe: Any) -> TextEncoders:
    """The text encoders of a diffusers pipeline of either kind, ours or stock."""
    suffixes = ("",) if getattr(pipe, "text_encoder_2", None) is None else ("", "_2")
    tokenizers, networks = (
        [getattr(pipe, f"{name}{suffix}") for suffix in suffixes] for name in ("tokenizer", "text_encoder")
    )
    return TextEncoders.of(tokenizers, networks, (getattr(pipe, "config", None) or {}).get("text_layer"))


def side_by_side(states: Sequence[PromptStates]) -> PromptStates:
    """The states of one encoder, or of two as one, with the last one's pooled state."""
    first, last = states[0], states[-1]
    if len(states) == 1:
        return replace(first, pooled=None)
    return replace(last, hidden_states=torch.cat([each.hidden_states for each in states], dim=-1))  # (B, T, D)


def mean_word_norm(text_encoder: Any) -> float:
    """Mean L2 norm of a text encoder's token embeddings: the length that a pseudo-word should have among words."""
    weight: Tensor = text_encoder.get_input_embeddings().weight
    return 1.0 if weight.is_meta else float(weight.detach().float().norm(dim=1).mean())
