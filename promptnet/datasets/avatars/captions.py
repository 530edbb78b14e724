"""Natural English for an avatar's record, whole or in part, with clauses dropped and reordered for training."""

from __future__ import annotations

import random
from collections.abc import Collection

from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, FIELDS, IDENTITY_FIELDS, Attributes, Identity

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
}


def caption(
    identity: Identity | None,
    attributes: Attributes | None,
    *,
    subject: str = "a person",
    fields: Collection[str] | None = None,
    rng: random.Random | None = None,
) -> str:
    """Describe an avatar, for example "a sad portrait of S*, wearing sunglasses, on a pink background".

    Args:
        identity: who; None leaves the identity's fields out.
        attributes: how; None leaves the attributes' fields out.
        subject: the noun phrase of the person: "a person", "S*".
        fields: fields to mention (of those given); None mentions all.
        rng: shuffles the clauses; None keeps the canonical order.
    """
    record = {**(identity.record() if identity else {}), **(attributes.record() if attributes else {})}
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


def random_caption(
    identity: Identity | None,
    attributes: Attributes | None,
    *,
    rng: random.Random,
    subject: str = "a person",
    full: float = 0.4,
) -> str:
    """A caption for training: all fields with probability `full`, else each kept with a probability drawn anew."""
    fields: set[str] | None = None
    if rng.random() >= full:
        keep = rng.random()
        fields = {field for field in IDENTITY_FIELDS + ATTRIBUTE_FIELDS if rng.random() < keep}
    return caption(identity, attributes, subject=subject, fields=fields, rng=rng)


def mentioned(text: str) -> dict[str, str]:
    """Read a caption back into the fields it mentions (the inverse of `caption`, used to supervise and to test)."""
    words = text.replace(",", " ").split()
    found = {field: value for field, value in _WORDS if value in words}
    if "clean-shaven" in words:
        found["beard"] = "none"
    if "without glasses" in text:
        found["glasses"] = "none"
    return found


# "short" is hair and "shirt" is clothes; colour words are disjoint by construction (avatars.py).
_WORDS = [(field, value) for field, values in FIELDS.items() for value in values if value != "none"]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _opening(record: dict[str, str]) -> str:
    return _article(" ".join([*(record[field] for field in ("expression", "style") if field in record), "portrait"]))


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _with(record: dict[str, str]) -> str:
    parts = []
    if "skin" in record:
        parts.append(f"{record['skin']} skin")
    if "hair" in record or "hair_color" in record:
        phrase = _HAIR_PHRASE[record["hair"]] if "hair" in record else "{} hair"
        parts.append(" ".join(phrase.format(record.get("hair_color", "")).split()))
    if record.get("beard") == "beard":
        parts.append("a beard")
    return f"with {_listing(parts)}" if parts else ""


def _shaven(record: dict[str, str]) -> str:
    return "clean-shaven" if record.get("beard") == "none" else ""


def _wearing(record: dict[str, str]) -> str:
    parts = []
    if record.get("glasses", "none") != "none":
        parts.append(record["glasses"])
    if "clothes" in record:
        parts.append(
            _article(" ".join([*([record["clothes_color"]] if "clothes_color" in record else []), record["clothes"]]))
        )
    elif "clothes_color" in record:
        parts.append(f"{record['clothes_color']} clothes")
    return f"wearing {_listing(parts)}" if parts else ""


def _bare(record: dict[str, str]) -> str:
    return "without glasses" if record.get("glasses") == "none" else ""


def _behind(record: dict[str, str]) -> str:
    return f"on a {record['background']} background" if "background" in record else ""
