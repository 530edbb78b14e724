"""Natural English for an avatar's record, whole or in part, with clauses dropped and reordered for training."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping

from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, COLOR_FIELDS, FIELDS, IDENTITY_FIELDS

_HAIR_PHRASE = {
    "long": "long {} hair",
    "short": "short {} hair",
    "curly": "curly {} hair",
    "spiky": "spiky {} hair",
    "bob": "a {} bob",
    "quiff": "a {} quiff",
    "mohawk": "a {} mohawk",
    "pigtails": "{} pigtails",
    "bun": "a {} bun",
    "ponytail": "a {} ponytail",
}
NEUTRAL_PROMPT = "a portrait of S*"


def caption(
    record: Mapping[str, str],
    *,
    subject: str = "a person",
    fields: Collection[str] | None = None,
    rng: random.Random | None = None,
) -> str:
    """Describe an avatar, for example "a sad portrait of S*, wearing sunglasses, on a pink background".

    Args:
        record: fields to words, `Avatar.record()` or a part of it. A word may be a placeholder (`soft_words`).
        subject: the noun phrase of the person: "a person", "S*".
        fields: fields to mention (of those given); None mentions all.
        rng: shuffles the clauses; None keeps the canonical order.
    """
    if fields is not None:
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ValueError(f"fields {sorted(unknown)} are not among {', '.join(FIELDS)}")
        record = {field: value for field, value in record.items() if field in fields}
    clauses = [
        clause
        for clause in (_with(record), _shaven(record), _wearing(record), _bare(record), _behind(record))
        if clause
    ]
    if rng is not None:
        rng.shuffle(clauses)
    return ", ".join([f"{_opening(record)} of {subject}", *clauses])


def random_fields(rng: random.Random, full: float = 0.4) -> set[str] | None:
    """Draw which fields a training caption mentions: all with probability `full`, else each with one drawn anew."""
    if rng.random() < full:
        return None
    keep = rng.random()
    return {field for field in IDENTITY_FIELDS + ATTRIBUTE_FIELDS if rng.random() < keep}


def sample_fields(rng: random.Random, neutral: float = 0.2) -> frozenset[str]:
    """Draw which attributes a pair's prompt names: none with probability `neutral`, else each with one drawn anew."""
    if rng.random() < neutral:
        return frozenset()
    keep = rng.random()
    return frozenset(field for field in ATTRIBUTE_FIELDS if rng.random() < keep)


def mentioned(text: str) -> dict[str, str]:
    """Read a caption back into the fields it mentions (the inverse of `caption`)."""
    words = text.replace(",", " ").split()
    found = {field: value for field, value in _WORDS if value in words}
    if "clean-shaven" in words:
        found["beard"] = "none"
    if "without glasses" in text:
        found["glasses"] = "none"
    return found


def soft_words(record: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Put placeholders where a record has colour words.

    Returns:
        The record with "S1*", "S2*", ... for its colours, and each placeholder's field.
    """
    names = {field: f"S{place}*" for place, field in enumerate(COLOR_FIELDS, 1) if field in record}
    return {**record, **names}, {name: field for field, name in names.items()}


_WORDS = [(field, value) for field, values in FIELDS.items() for value in values if value != "none"]


def _article(phrase: str) -> str:
    return f"{'an' if re.match('[aeiou]', phrase) else 'a'} {phrase}"


def _opening(record: Mapping[str, str]) -> str:
    return _article(" ".join([*(record[field] for field in ("expression", "style") if field in record), "portrait"]))


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _with(record: Mapping[str, str]) -> str:
    parts = []
    if "skin" in record:
        parts.append(f"{record['skin']} skin")
    if "hair" in record or "hair_color" in record:
        phrase = _HAIR_PHRASE[record["hair"]] if "hair" in record else "{} hair"
        parts.append(" ".join(phrase.format(record.get("hair_color", "")).split()))
    if record.get("beard", "none") != "none":
        parts.append(f"a {record['beard']}")
    return f"with {_listing(parts)}" if parts else ""


def _shaven(record: Mapping[str, str]) -> str:
    return "clean-shaven" if record.get("beard") == "none" else ""


def _wearing(record: Mapping[str, str]) -> str:
    parts = []
    if record.get("glasses", "none") != "none":
        parts.append(record["glasses"])
    if "clothes" in record:
        color = [record["clothes_color"]] if "clothes_color" in record else []
        parts.append(_article(" ".join([*color, record["clothes"]])))
    elif "clothes_color" in record:
        parts.append(f"{record['clothes_color']} clothes")
    return f"wearing {_listing(parts)}" if parts else ""


def _bare(record: Mapping[str, str]) -> str:
    return "without glasses" if record.get("glasses") == "none" else ""


def _behind(record: Mapping[str, str]) -> str:
    return f"on a {record['background']} background" if "background" in record else ""
