"""Words of the vocabulary as pseudo-words: vectors of the text encoders' embedding tables."""

from typing import Any

import torch
from torch import Tensor

from promptnet.models.text_encoders import text_encoders_of


def word_embeddings(pipe: Any, text: str) -> Tensor:
    """Return the embeddings of a text's tokens, (L, D) float32; D is the sum of the text encoders' widths.

    Where S* stands for them, a prompt is what it is with the text written out.

    Args:
        pipe: a PromptNetPipeline.
        text: such as "person" or "sks person".

    Raises:
        ValueError: the text has no token, or two tokenizers cut it in different ways.
    """
    parts = [_of_encoder(encoder, text) for encoder in text_encoders_of(pipe).text_encoders]
    lengths = {len(part) for part in parts}
    if len(lengths) > 1 or not max(lengths):
        raise ValueError(f"The text {text!r} has {sorted(lengths)} tokens: give words that the base model knows.")
    return torch.cat(parts, dim=1)


def _of_encoder(encoder: Any, text: str) -> Tensor:
    weight = encoder.network.get_input_embeddings().weight
    ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
    return weight.detach()[torch.tensor(ids, dtype=torch.long, device=weight.device)].float()


def repeated(words: Tensor, count: int) -> Tensor:
    """Return `count` words (count, D) of these (L, D): the last ones, or all over again where there are fewer."""
    last = words[-count:]
    return last.repeat(-(-count // len(last)), 1)[:count].clone()
