"""Which words a small base model does not know.

A tokenizer of CLIP's size writes rare words in pieces, and its text encoder has read enough of them to know what they
mean. One that was trained on the captions of one small data set has every word of these as one token; of other words
its text encoder makes noise.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from promptnet.models.placeholders import PLACEHOLDER

logger = logging.getLogger(__name__)

_SMALL = 10_000  # CLIP's has 49,408 tokens
_WORD = re.compile(r"[^\W\d_]+")
_END = "</w>"


def unknown_words(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """The words of texts that a small tokenizer was not trained on, each once; none of a large one.

    Args:
        tokenizer: a CLIP tokenizer.
        texts: prompts; placeholders do not count.
    """
    if len(tokenizer) >= _SMALL:
        return []
    known = tokenizer.get_vocab()
    texts = [PLACEHOLDER.sub(" ", text) for text in texts]
    for token in getattr(tokenizer, "added_tokens_encoder", {}):  # words of textual inversions
        texts = [text.replace(token, " ") for text in texts]
    words = [word for text in texts for word in _WORD.findall(text)]
    return [word for word in dict.fromkeys(words) if f"{word.lower()}{_END}" not in known]


def warn_of_unknown_words(tokenizers: Sequence[Any], texts: Iterable[str]) -> None:
    """Log a warning that names the words which the base model does not know, if there are any."""
    texts = list(texts)
    found = dict.fromkeys(word for tokenizer in tokenizers for word in unknown_words(tokenizer, texts))
    if found:
        logger.warning(
            "The base model does not know the word%s %s: it was trained on a small vocabulary, and what it makes of "
            "other words means nothing.",
            "s" * (len(found) > 1),
            ", ".join(map(repr, found)),
        )
