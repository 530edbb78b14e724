"""What the text encoder makes of prompts with pseudo-words (ProFusion, arXiv 2305.13579, section 3.1).

The encoder itself does the work. For the length of one call its embedding layer puts the pseudo-words where their
placeholders stand, so the causal mask, the norms, attention backends and adapters on the encoder are its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptnet.models.placeholders import PLACEHOLDER, find_placeholders, replace_placeholders
from promptnet.models.prompt_tokens import Padding, PromptTokens, WordPlace, tokenize_prompts
from promptnet.models.slots import asking, slot_of

__all__ = [
    "PLACEHOLDER",
    "PromptStates",
    "PromptTokens",
    "WordPlace",
    "encode_prompts",
    "encode_tokens",
    "find_placeholders",
    "replace_placeholders",
    "tokenize_prompts",
]

Positions = Literal["natural", "published"]
Layer = Literal["last", "penultimate"]


@dataclass(frozen=True)
class PromptStates:
    """What the U-Net is conditioned on.

    Attributes:
        hidden_states: (B, T, D), the encoder's states.
        pooled: (B, P), the projected state of the end token, from encoders that have a projection (SDXL's second).
        places: for each prompt, where its pseudo-words stand.
    """

    hidden_states: Tensor
    pooled: Tensor | None
    places: tuple[tuple[WordPlace, ...], ...]

    def scaled(self, pseudo_word_scale: float) -> "PromptStates":
        """gamma: the states with those at the first pseudo-word of each placeholder multiplied by `pseudo_word_scale`.

        One encoding serves several gammas this way. A scale of 1 changes nothing.
        """
        firsts = [(row, place.start) for row, places in enumerate(self.places) for place in places]
        if pseudo_word_scale == 1.0 or not firsts:
            return self
        rows, columns = (list(axis) for axis in zip(*firsts, strict=True))
        factors = torch.ones_like(self.hidden_states[..., :1])  # (B, T, 1)
        factors[rows, columns] = pseudo_word_scale
        return replace(self, hidden_states=self.hidden_states * factors)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompts: Sequence[str],
    pseudo_words: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    pseudo_word_scale: float = 1.0,
    positions: Positions = "natural",
    layer: Layer = "last",
    final_norm: bool = True,
    device: torch.device | None = None,
    padding: Padding = "max_length",
) -> PromptStates:
    """Tokenise prompts and encode them: `tokenize_prompts`, then `encode_tokens`.

    Args:
        tokenizer: a CLIP tokenizer.
        text_encoder: a CLIP text encoder, with or without projection.
        prompts: B prompts.
        pseudo_words: for each prompt, placeholder -> (L, D) pseudo-words, D the width of the encoder's embeddings.
        padding: see `tokenize_prompts`; the other arguments are those of `encode_tokens`.

    Raises:
        ValueError: see `tokenize_prompts` and `encode_tokens`.
    """
    _check_shapes(pseudo_words or (), _embeddings(text_encoder))
    tokens = tokenize_prompts(
        tokenizer,
        prompts,
        None if pseudo_words is None else [{name: len(word) for name, word in given.items()} for given in pseudo_words],
        max_length=min(tokenizer.model_max_length, _max_positions(text_encoder)),
        padding=padding,
    )
    return encode_tokens(
        text_encoder,
        tokens,
        pseudo_words,
        pseudo_word_scale=pseudo_word_scale,
        positions=positions,
        layer=layer,
        final_norm=final_norm,
        device=device,
    )


def encode_tokens(
    text_encoder: PreTrainedModel,
    tokens: PromptTokens,
    pseudo_words: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    pseudo_word_scale: float = 1.0,
    positions: Positions = "natural",
    layer: Layer = "last",
    final_norm: bool = True,
    clip_skip: int = 0,
    device: torch.device | None = None,
) -> PromptStates:
    """Encode tokenised prompts with these pseudo-words; differentiable in them.

    Without placeholders this computes what diffusers' `encode_prompt` does, bit for bit.

    Args:
        text_encoder: the encoder that the tokens are for.
        tokens: from `tokenize_prompts`.
        pseudo_words: for each prompt, placeholder -> (L, D). Those a prompt does not mention are left out.
        pseudo_word_scale: gamma, see `PromptStates.scaled`. It acts on the output, after the final norm.
        positions: "natural" gives pseudo-words the position embedding of where they stand, and what follows that of
            its new place. "published" gives pseudo-words none, and what follows that of its old place, counting the
            placeholder as one token.
        layer: which states. "last" for SD 1.5 and SD 2 (whose own encoder was cut short), "penultimate" for SDXL and
            for SD 2's complete encoder.
        final_norm: whether the encoder's final layer norm is applied. SDXL's penultimate states go without.
        clip_skip: how many layers earlier the states are read.
        device: where the encoder computes, default where it is; they differ when a pipeline offloads it.

    Raises:
        ValueError: the pseudo-words do not fit the tokens or the encoder.
    """
    if positions not in ("natural", "published"):
        raise ValueError(f"positions={positions!r} is not known: it is 'natural' or 'published'.")
    if layer not in ("last", "penultimate"):
        raise ValueError(f"layer={layer!r} is not known: it is 'last' or 'penultimate'.")
    embeddings = _embeddings(text_encoder)
    device = text_encoder.device if device is None else device
    splice = _Splice.gather(tokens, pseudo_words, embeddings)
    whole_output = layer == "last" and final_norm and not clip_skip
    arguments: dict[str, Any] = {"output_hidden_states": not whole_output}
    if getattr(text_encoder.config, "use_attention_mask", False):
        arguments["attention_mask"] = tokens.attention_mask.to(device)
    if splice is not None and positions == "published":
        arguments["position_ids"] = tokens.published_positions.to(device)
    with _spliced(embeddings, splice, with_positions=positions == "natural"):
        output = text_encoder(tokens.input_ids.to(device), **arguments)
    states = PromptStates(
        hidden_states=output.last_hidden_state
        if whole_output
        else _chosen(text_encoder, output, layer, final_norm, clip_skip),
        pooled=getattr(output, "text_embeds", None),
        places=tokens.places,
    )
    return states.scaled(pseudo_word_scale)


def encode_embedded(
    text_encoder: PreTrainedModel, input_ids: Tensor, words: Tensor, is_word: Tensor, layer: Layer, final_norm: bool
) -> tuple[Tensor, Tensor | None]:
    """Encode tokens of which some are pseudo-words, with natural positions, on tensors alone: for exported graphs.

    Args:
        text_encoder: the encoder.
        input_ids: (B, T); those under pseudo-words count for nothing.
        words: (B, T, D), read where `is_word` is true.
        is_word: (B, T), booleans.
        layer: as in `encode_tokens`.
        final_norm: as in `encode_tokens`.

    Returns:
        States (B, T, D), and the pooled state (B, P) of encoders that have a projection.
    """
    embeddings = _embeddings(text_encoder)

    def put_words(_module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        positions = _position_table(embeddings).weight[: embedded.shape[1]]  # (T, D)
        return torch.where(is_word[..., None], words.to(embedded.dtype) + positions, embedded)  # (B, T, D)

    whole_output = layer == "last" and final_norm
    with asking({slot_of(embeddings).places[0].key: put_words}):
        output = text_encoder(input_ids, output_hidden_states=not whole_output)
    states = output.last_hidden_state if whole_output else _chosen(text_encoder, output, layer, final_norm, 0)
    return states, getattr(output, "text_embeds", None)


def _chosen(text_encoder: PreTrainedModel, output: Any, layer: Layer, final_norm: bool, clip_skip: int) -> Tensor:
    """Intermediate states (B, T, D); the encoder keeps them without its final norm."""
    states = output.hidden_states[(-1 if layer == "last" else -2) - clip_skip]
    return _text_encoder(text_encoder).final_layer_norm(states) if final_norm else states


def _text_encoder(text_encoder: PreTrainedModel) -> Any:
    """The module that holds embeddings and final norm: the model itself, or inside it with a projection."""
    return getattr(text_encoder, "text_model", text_encoder)


def _embeddings(text_encoder: PreTrainedModel) -> nn.Module:
    embeddings = getattr(_text_encoder(text_encoder), "embeddings", None)
    if not hasattr(embeddings, "position_embedding"):
        raise ValueError(
            f"{type(text_encoder).__name__} has no CLIP text embeddings, so pseudo-words cannot be put into its "
            "prompts. Use a CLIPTextModel or CLIPTextModelWithProjection."
        )
    assert isinstance(embeddings, nn.Module)
    return embeddings


def _position_table(embeddings: nn.Module) -> nn.Embedding:
    table = embeddings.get_submodule("position_embedding")
    assert isinstance(table, nn.Embedding)
    return table


def _max_positions(text_encoder: PreTrainedModel) -> int:
    return _position_table(_embeddings(text_encoder)).num_embeddings


def _check_shapes(pseudo_words: Sequence[Mapping[str, Tensor]], embeddings: nn.Module) -> None:
    width = _position_table(embeddings).embedding_dim
    for given in pseudo_words:
        for name, words in given.items():
            if words.ndim != 2 or len(words) == 0 or words.shape[1] != width:
                raise ValueError(
                    f"The pseudo-words for {name} have shape {tuple(words.shape)}, but this text encoder takes "
                    f"(L, {width}). They were made for another base model."
                )


@dataclass(frozen=True)
class _Splice:
    """N vectors and where they go: row and column of each in the (B, T, D) embeddings."""

    rows: Tensor  # (N,)
    columns: Tensor  # (N,)
    vectors: Tensor  # (N, D)

    @classmethod
    def gather(
        cls, tokens: PromptTokens, pseudo_words: Sequence[Mapping[str, Tensor]] | None, embeddings: nn.Module
    ) -> "_Splice | None":
        """Collect the pseudo-words of all places, or None if there are none."""
        given = pseudo_words if pseudo_words is not None else [{} for _ in tokens.places]
        if len(given) != len(tokens.places):
            raise ValueError(f"There are {len(tokens.places)} prompts, but pseudo-words for {len(given)}.")
        _check_shapes(given, embeddings)
        rows, columns, vectors = [], [], []
        for row, (places, words) in enumerate(zip(tokens.places, given, strict=True)):
            for place in places:
                vectors.append(_words_for(place, words))
                rows += [row] * place.length
                columns += range(place.start, place.start + place.length)
        if not vectors:
            return None
        return cls(torch.tensor(rows), torch.tensor(columns), torch.cat(vectors))


def _words_for(place: WordPlace, words: Mapping[str, Tensor]) -> Tensor:
    if place.placeholder not in words:
        raise ValueError(f"No pseudo-words are given for {place.placeholder}, which the prompt mentions.")
    found = words[place.placeholder]
    if len(found) != place.length:
        raise ValueError(
            f"{place.placeholder} was tokenised for {place.length} pseudo-words, but has {len(found)} now. "
            "Tokenise the prompts again."
        )
    return found


@contextmanager
def _spliced(embeddings: nn.Module, splice: _Splice | None, *, with_positions: bool) -> Iterator[None]:
    """For the length of the block, the embedding layer puts these vectors in place of what it computed there."""
    if splice is None:
        yield
        return

    def put_words(_module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        rows, columns = splice.rows.to(embedded.device), splice.columns.to(embedded.device)
        vectors = splice.vectors.to(embedded)
        if with_positions:
            vectors = vectors + _position_table(embeddings)(columns)
        return embedded.index_put((rows, columns), vectors.to(embedded.dtype))  # (B, T, D)

    with asking({slot_of(embeddings).places[0].key: put_words}):
        yield
