"""The consent record: who declared, when, and to which words, that the person in an image agrees.

A record keeps no face: of the images only a keyed hash, with which the service can answer whether an image it is
shown was one of them. After deletion key id, time, version and that hash remain, and nothing that leads to the user.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from promptnet.serve.database import CONSENTS
from promptnet.serve.keys import Caller, new_id
from promptnet.serve.vault import Vault

# Never change a text: add another version.
TEXTS = {
    "2026-11": (
        "I am the person in these images, or I have this person's explicit consent to their being processed "
        "here to make images of them. I can withdraw it at any time by deleting the subject."
    ),
}
CURRENT = "2026-11"


def statement() -> dict[str, str]:
    """The words that `consent=true` stands for."""
    text = TEXTS[CURRENT]
    return {"version": CURRENT, "text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def consent_row(caller: Caller, job: str, images: Sequence[bytes], vault: Vault) -> dict[str, Any]:
    """A record for the images of a job."""
    hashes = sorted(hashlib.sha256(image).digest() for image in images)
    return {
        "id": new_id("consent"),
        "owner": caller.user,
        "job": job,
        "key": caller.key,
        "time": time.time(),
        "version": CURRENT,
        "mark": vault.mark("consent", *hashes),
    }


def forget_owner(connection: sa.Connection, user: str) -> None:
    """Leave of a user's records what proves them, and nothing that leads to the user."""
    connection.execute(CONSENTS.update().where(CONSENTS.c.owner == user).values(owner=None, job=None))
