"""Placeholders in prompts as text. Nothing heavy is imported, so that a command can check its prompts at once."""

import re
from collections.abc import Mapping

PLACEHOLDER = re.compile(r"(?<!\w)S\d*\*")


def find_placeholders(prompt: str) -> list[str]:
    """The placeholders of a prompt in order, repeated ones repeatedly: "S1* and S2*" gives ["S1*", "S2*"]."""
    return PLACEHOLDER.findall(prompt)


def replace_placeholders(prompt: str, words: Mapping[str, str]) -> str:
    """The prompt with words for placeholders: "S* in a hat" with {"S*": "a man"} gives "a man in a hat".

    Raises:
        ValueError: names a placeholder for which there is no word.
    """
    missing = sorted(set(find_placeholders(prompt)) - set(words))
    if missing:
        raise ValueError(f"No word is given for {', '.join(missing)} in the prompt {prompt!r}.")
    return PLACEHOLDER.sub(lambda match: words[match.group()], prompt)


def check_letters(text: str) -> None:
    """Refuse halves of characters, as bytes of another encoding leave them on a command line.

    Raises:
        ValueError: there is one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        odd = text[error.start]
        raise ValueError(f"The text {text!r} holds {odd!r}, which is no character: write it in UTF-8.") from error
