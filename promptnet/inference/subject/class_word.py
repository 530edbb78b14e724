"""The class word, checked as text alone: a command can do so before it loads anything."""

from typing import Any

from promptnet.models.placeholders import find_placeholders

MAX_CLASS_WORD_LENGTH = 200


class SubjectError(ValueError):
    """A subject, or its file, that cannot be used. The message says why, and what to do."""


def check_class_word(word: Any) -> None:
    """Refuse what cannot stand for a person in a sentence.

    Raises:
        SubjectError: it is no short text of its own.
    """
    if not isinstance(word, str) or not word.strip() or len(word) > MAX_CLASS_WORD_LENGTH or not word.isprintable():
        raise SubjectError(f"class_word={word!r} must be a short word, such as 'person' or 'woman'.")
    if find_placeholders(word):
        raise SubjectError(f"class_word={word!r} holds a placeholder: say what the person is, such as 'person'.")
