"""What an export says of itself, as safetensors metadata that other readers ignore: never what a face looks like."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from promptnet.io.artifacts import hash_content

PREFIX = "promptnet."
VERSION = "1"
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Passport:
    """Where an export comes from, and what may be done with it.

    Args:
        fingerprint: component -> hash of the weights of the base model and encoder.
        class_word: what the person is in a sentence.
        base: what the base model was called.
        recipe: how the content was made.
        licence: of the base model, whose terms the export inherits.
        consent: SHA-256 of the consent statement; empty if none was given.
        date: in UTC, ISO 8601.
    """

    fingerprint: Mapping[str, str]
    class_word: str = ""
    base: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    licence: str = UNKNOWN_LICENCE
    consent: str = ""
    date: str = ""

    def metadata(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Every entry under `promptnet.*`, with a hash over them and the tensors.

        Args:
            kind: name of the format.
            tensors: of the file.
        """
        texts = {
            "format": kind,
            "version": VERSION,
            "fingerprint": _canonical(dict(self.fingerprint)),
            "class_word": self.class_word,
            "base": self.base,
            "recipe": _canonical(dict(self.recipe)),
            "licence": self.licence,
            "consent": self.consent,
            "date": self.date,
        }
        entries = {f"{PREFIX}{name}": text for name, text in texts.items()}
        return {**entries, f"{PREFIX}content_hash": hash_content(entries, tensors)}


def is_intact(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether an export's content is what was written, by the hash in its passport."""
    entries = {name: text for name, text in metadata.items() if name.startswith(PREFIX)}
    written = entries.pop(f"{PREFIX}content_hash", None)
    return written == hash_content(entries, tensors)


def fingerprint_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """The fingerprint of an export's passport; empty if it has none that can be read."""
    try:
        return dict(json.loads(metadata.get(f"{PREFIX}fingerprint", "{}")))
    except ValueError:
        return {}


def now() -> str:
    """The date for a passport."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def consent_hash(statement: str) -> str:
    """SHA-256 of a consent statement's text; empty for none."""
    return hashlib.sha256(statement.encode()).hexdigest() if statement else ""


def licence_of(folder: str | Path) -> str:
    """The licence that a model folder's README names in its front matter."""
    card = Path(folder) / "README.md"
    if not card.is_file():
        return UNKNOWN_LICENCE
    front = re.match(r"---\n(.*?)\n---", card.read_text("utf-8"), re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else UNKNOWN_LICENCE


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
