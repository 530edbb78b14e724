"""Captions and names that come as bytes: decoded for certain, or refused with the name of what they are in."""

from __future__ import annotations

import json
from typing import Any

from promptnet.datasets.prepare.sources.base import Refused, printable
from promptnet.io.decode_text import decode_text


def decoded(data: bytes, name: str) -> str:
    """Return a text as `promptnet.io.decode_text` reads it.

    Args:
        data: what a file or member holds.
        name: of it, for the message.

    Raises:
        Refused: it is none of these, or was spoilt by an earlier conversion.
    """
    try:
        return decode_text(data)
    except ValueError as error:
        raise bad_text(name, str(error)) from error


def tidied(text: str | None) -> str | None:
    """Return a text in one line with single spaces; None for a blank one."""
    return " ".join((text or "").split()) or None


def json_field(data: bytes, name: str, field: str) -> str | None:
    """Return one field of a JSON text, tidied; `a.b` is field b of field a, None stands for null and for blank.

    Raises:
        Refused: there is no such field, or it holds neither a text nor a number.
    """
    try:
        value: Any = json.loads(decoded(data, name))
        for part in field.split("."):
            value = value[part]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise bad_text(name, f"has no field '{printable(field)}' ({type(error).__name__})") from error
    return as_text(value, name, field)


def as_text(value: Any, name: str, field: str) -> str | None:
    """Return a field's value as text, tidied.

    Raises:
        Refused: it is a list or a record, of which nobody knows what it should say.
    """
    if isinstance(value, list | tuple | dict):
        raise bad_text(name, f"holds a {type(value).__name__} in '{printable(field)}', not one text")
    return None if value is None else tidied(str(value))


def bad_text(name: str, problem: str) -> Refused:
    """Return the refusal of an image whose text cannot be used; it is the text that is to blame."""
    return Refused("bad text", f"comes with the text '{printable(name)}', which {problem}")
