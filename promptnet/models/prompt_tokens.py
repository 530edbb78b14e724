"""Prompts with placeholders, as tokens: where each pseudo-word will stand.

`S*` holds the place of the one subject's pseudo-words, `S1*`, `S2*`, ... those of several. A placeholder may stand
anywhere, several times, beside others; each becomes as many tokens as its subject has pseudo-words, and what follows
moves to the right.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from promptnet.models.placeholders import PLACEHOLDER, find_placeholders

logger = logging.getLogger(__name__)

Padding = Literal["max_length", "longest"]

# A tokenizer that was saved without its length reports a huge one.
_NO_LENGTH = 10**6


@dataclass(frozen=True)
class WordPlace:
    """Where one occurrence of a placeholder has its pseudo-words: tokens `start` to `start + length - 1`."""

    placeholder: str
    start: int
    length: int


@dataclass(frozen=True)
class PromptTokens:
    """Tokenised prompts, to be encoded any number of times with changing pseudo-words.

    Attributes:
        input_ids: (B, T); a filler stands where pseudo-words go.
        attention_mask: (B, T), 1 up to the end of each text and 0 on padding.
        published_positions: (B, T), positions as if every placeholder were one token.
        places: for each prompt, its placeholders' places from left to right.
    """

    input_ids: Tensor
    attention_mask: Tensor
    published_positions: Tensor
    places: tuple[tuple[WordPlace, ...], ...]


def check_placeholders(prompts: Sequence[str], given: Sequence[Mapping[str, object]]) -> None:
    """Refuse placeholders without pseudo-words, and pseudo-words that no prompt calls for.

    Args:
        prompts: B prompts.
        given: for each, the placeholders that have pseudo-words. One prompt may leave some unused that another uses.

    Raises:
        ValueError: names the placeholder and the prompt.
    """
    if len(given) != len(prompts):
        raise ValueError(f"There are {len(prompts)} prompts, but pseudo-words for {len(given)}: give one set for each.")
    used = set()
    for prompt, known in zip(prompts, given, strict=True):
        wanted = set(find_placeholders(prompt))
        if wanted - set(known):
            missing = ", ".join(sorted(wanted - set(known)))
            raise ValueError(f"The prompt {prompt!r} mentions {missing}, but no pseudo-words are given for it.")
        used |= wanted
    unused = sorted({name for known in given for name in known} - used)
    if unused:
        raise ValueError(
            f"Pseudo-words are given for {', '.join(unused)}, but no prompt mentions it: {list(prompts)!r}. "
            f"Write {unused[0]} where the subject should appear."
        )


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_pseudo_words: Sequence[Mapping[str, int]] | None = None,
    *,
    max_length: int | None = None,
    padding: Padding = "max_length",
) -> PromptTokens:
    """Tokenise prompts, leaving room for their pseudo-words.

    A prompt without placeholders gets the tokens that diffusers' Stable Diffusion pipelines give it.

    Args:
        tokenizer: any CLIP tokenizer; its padding token is used (SD 2 pads with "!", SD 1.5 with the end token).
        prompts: B prompts.
        num_pseudo_words: for each prompt, how many pseudo-words each placeholder stands for.
        max_length: tokens that the text encoder can take, default the tokenizer's `model_max_length`.
        padding: "longest" pads to the longest prompt instead of `max_length`, as the published training did.

    Raises:
        ValueError: placeholders and pseudo-words do not match, or a pseudo-word would be cut off at `max_length`.
            Plain text that is cut off is only warned about, as in diffusers.
    """
    counts = num_pseudo_words if num_pseudo_words is not None else [{} for _ in prompts]
    check_placeholders(prompts, counts)
    max_length = tokenizer.model_max_length if max_length is None else max_length
    if max_length > _NO_LENGTH:
        raise ValueError(
            "The tokenizer does not know how many tokens its text encoder takes (model_max_length is not set): "
            "pass max_length, which is the encoder's max_position_embeddings."
        )
    rows = [_tokenize_one(tokenizer, *pair, max_length) for pair in zip(prompts, counts, strict=True)]
    length = max_length if padding == "max_length" else max(len(ids) for ids, _ in rows)
    return _stack_rows(rows, length, _special_ids(tokenizer)[2])


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Start, end and padding token; a tokenizer without the last pads with its end token."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(pad, int)):
        raise ValueError(f"{type(tokenizer).__name__} has no start or end token: use the base model's CLIP tokenizer.")
    return start, end, pad


def _filler_id(end: int) -> int:
    """A token to stand under pseudo-words: not the end token, nor the highest id, which is where encoders pool."""
    return 0 if end != 0 else 1


def _tokenize_one(
    tokenizer: PreTrainedTokenizerBase, prompt: str, counts: Mapping[str, int], max_length: int
) -> tuple[list[int], tuple[WordPlace, ...]]:
    """One prompt's ids with start and end token, and its pseudo-words' places.

    The text between placeholders is tokenised piece by piece: CLIP's tokens never reach across a word's end.
    """
    start, end, _ = _special_ids(tokenizer)
    names = find_placeholders(prompt)
    pieces = PLACEHOLDER.split(prompt)
    ids, places = [start], []
    for index, piece in enumerate(pieces):
        ids += tokenizer(with_all_vectors(tokenizer, piece), add_special_tokens=False, verbose=False).input_ids
        if index < len(names):
            places.append(WordPlace(names[index], len(ids), counts[names[index]]))
            ids += [_filler_id(end)] * counts[names[index]]
    _check_room(tokenizer, prompt, ids, places, max_length)
    return [*ids[: max_length - 1], end], tuple(places)


def with_all_vectors(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text with every vector of a textual inversion: "<cat>" of three is "<cat> <cat>_1 <cat>_2"."""
    added = getattr(tokenizer, "added_tokens_encoder", {})
    for token in [token for token in added if f"{token}_1" in added and token in text]:
        names, place = [token], 1
        while f"{token}_{place}" in added:
            names.append(f"{token}_{place}")
            place += 1
        text = text.replace(token, " ".join(names))
    return text


def _check_room(
    tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], places: list[WordPlace], max_length: int
) -> None:
    """Refuse to cut pseudo-words; warn when plain text is cut. One place is the end token's."""
    last_place = max_length - 2
    for place in places:
        if place.start + place.length - 1 > last_place:
            raise ValueError(
                f"The prompt is too long: {place.placeholder} would be cut off. Its pseudo-words are tokens "
                f"{place.start} to {place.start + place.length - 1}, and the text encoder has room up to token "
                f"{last_place}. Shorten the text before {place.placeholder} in {prompt!r}."
            )
    if len(ids) > max_length - 1:
        lost = tokenizer.decode(ids[max_length - 1 :])
        logger.warning("The text encoder takes %d tokens, so the end of the prompt was cut off: %s", max_length, [lost])


def _stack_rows(rows: Sequence[tuple[list[int], tuple[WordPlace, ...]]], length: int, pad_id: int) -> PromptTokens:
    """Pad the rows to one length and stack them."""
    ids = [row + [pad_id] * (length - len(row)) for row, _ in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row, _ in rows]
    places = tuple(row_places for _, row_places in rows)
    return PromptTokens(
        input_ids=torch.tensor(ids, dtype=torch.long).reshape(len(rows), length),
        attention_mask=torch.tensor(mask, dtype=torch.long).reshape(len(rows), length),
        published_positions=torch.stack([_published_positions(row_places, length) for row_places in places]),
        places=places,
    )


def _published_positions(places: Sequence[WordPlace], length: int) -> Tensor:
    """Positions (T,) at which every group of pseudo-words counts as the one token its placeholder was."""
    steps = torch.ones(length, dtype=torch.long)
    for place in places:
        steps[place.start + 1 : place.start + place.length] = 0
    return steps.cumsum(0) - 1
