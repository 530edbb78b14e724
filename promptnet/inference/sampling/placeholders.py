"""Placeholders and subjects matched, as text alone: a command can check its prompts before it loads anything."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from promptnet.models.placeholders import PLACEHOLDER, check_letters, find_placeholders

S = TypeVar("S")
_DETERMINERS = r"a|an|the|this|that|these|those|my|your|his|her|its|our|their|one|some|every"
_HAS_DETERMINER = re.compile(rf"\b(?:{_DETERMINERS})\b", re.IGNORECASE)
_STARTS_WITH_ARTICLE = re.compile(r"(?:a|an|the)\s+", re.IGNORECASE)
# What ends the words that belong to the placeholder: "a photo of | S*", but "a smiling S*".
_PHRASE_START = re.compile(
    r"[,.;:!?()\"]|\b(?:of|with|and|or|by|as|like|for|from|in|on|at|to|near|beside|behind|next|is|are|was)\b",
    re.IGNORECASE,
)


def match_placeholders(prompt: str, subjects: Sequence[S]) -> dict[str, S]:
    """Placeholder -> subject: `S*` (or `S1*`) with one subject, `S1*`, `S2*`, ... with several.

    Raises:
        ValueError: a placeholder has no subject, a subject no placeholder, or the prompt is no text in Unicode.
    """
    check_letters(prompt)
    found = list(dict.fromkeys(find_placeholders(prompt)))
    known = {f"S{index}*": subject for index, subject in enumerate(subjects, start=1)}
    if len(subjects) == 1:
        known["S*"] = subjects[0]
    strangers = [name for name in found if name not in known]
    if strangers and not subjects:
        raise ValueError(
            f"The prompt {prompt!r} mentions {strangers[0]}, but no subject is given: pass subject=..., made by "
            "pipe.encode or pipe.customize, or write the prompt in plain words."
        )
    if strangers:
        raise ValueError(
            f"The prompt {prompt!r} mentions {strangers[0]}, but the {len(subjects)} subject(s) given are "
            f"{', '.join(known)}."
        )
    unused = [name for name, subject in known.items() if not any(known[other] is subject for other in found)]
    if unused:
        raise ValueError(
            f"A subject is given, but the prompt {prompt!r} does not mention {unused[-1]}. Write {unused[-1]} where "
            'the subject should appear, as in "a photo of S* wearing a hat".'
        )
    return {name: known[name] for name in found}


def with_class_words(prompt: str, words: Mapping[str, str]) -> str:
    """The reference prompt of ProFusion's refinement: "S* in a hat" with "person" gives "a person in a hat".

    An article is put before the class word, or left out, so that there is one: "a smiling S*" gives "a smiling
    person", whether the class word is "person" or "a person". Placeholders without a word stay.

    Raises:
        ValueError: a class word is empty.
    """

    def word_at(match: re.Match[str]) -> str:
        if match.group() not in words:
            return match.group()
        word = words[match.group()].strip()
        if not word:
            raise ValueError("The class word is empty: say what the subject is, for instance class_word='person'.")
        phrase = _PHRASE_START.split(prompt[: match.start()])[-1]
        if _HAS_DETERMINER.search(phrase):
            return _STARTS_WITH_ARTICLE.sub("", word, count=1)
        if _HAS_DETERMINER.match(word):
            return word
        return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"

    return PLACEHOLDER.sub(word_at, prompt)


def check_negative_prompt(prompt: str) -> None:
    """Refuse a placeholder in a negative prompt.

    Raises:
        ValueError: there is one, or the prompt is no text in Unicode.
    """
    check_letters(prompt)
    if find_placeholders(prompt):
        raise ValueError(f"The negative prompt {prompt!r} mentions a subject, but it takes plain words only.")
