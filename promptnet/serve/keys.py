"""API keys: random, shown once, kept as hashes. A key says who somebody is and how much they may ask for."""

import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa

from promptnet.serve.database import KEYS

SCOPES = ("user", "admin")
_PREFIX = "pn_"


@dataclass(frozen=True)
class KeyLimits:
    """How much one key may ask for.

    Args:
        requests_per_minute: further ones are refused for a while.
        open_jobs: waiting or running, at a time.
        subjects: stored, of the key's user.
        bytes: stored, of the key's user.

    Raises:
        ValueError: one is below 1.
    """

    requests_per_minute: int = 120
    open_jobs: int = 16
    subjects: int = 100
    bytes: int = 1024**3

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")


@dataclass(frozen=True)
class Caller:
    """Who calls: a valid key."""

    key: str
    user: str
    scope: str
    limits: KeyLimits


class Keys:
    """The keys in a database. 256 random bits need no slow hash: nobody guesses them."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(
        self, *, user: str | None = None, scope: str = "user", limits: KeyLimits | None = None
    ) -> tuple[str, Caller]:
        """Make a key and return it as (secret, who it is); the secret is kept nowhere.

        Args:
            user: whose it is; None makes a new user.
            scope: one of `SCOPES`.
            limits: None is the default.

        Raises:
            ValueError: the scope or the user does not exist.
        """
        if scope not in SCOPES:
            raise ValueError(f"scope '{scope}' must be one of {', '.join(SCOPES)}")
        if user is not None and not self._knows(user):
            raise ValueError(f"user '{user}' does not exist: take one of `promptnet serve keys list`, or leave it out")
        secret = _PREFIX + secrets.token_urlsafe(32)
        caller = Caller(new_id("key"), user or new_id("user"), scope, limits or KeyLimits())
        row = {
            "id": caller.key,
            "owner": caller.user,
            "hash": _hash(secret),
            "prefix": secret[: len(_PREFIX) + 4],
            "scope": scope,
            "limits": json.dumps(asdict(caller.limits)),
            "created": time.time(),
        }
        with self.engine.begin() as connection:
            connection.execute(KEYS.insert().values(**row))
        return secret, caller

    def find(self, secret: str) -> Caller | None:
        """Whose key this is; None if it is nobody's or was revoked."""
        query = sa.select(KEYS).where(KEYS.c.hash == _hash(secret), KEYS.c.revoked.is_(None))
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return None
        return Caller(row["id"], row["owner"], row["scope"], KeyLimits(**json.loads(row["limits"])))

    def listed(self) -> list[dict[str, Any]]:
        """Every key without its hash, the oldest first."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(KEYS).order_by(KEYS.c.created)).mappings().all()
        return [{name: value for name, value in row.items() if name != "hash"} for row in rows]

    def revoke(self, key: str) -> None:
        """Make a key worthless at once; what it made stays its user's.

        Args:
            key: its id, or the beginning that is shown.

        Raises:
            ValueError: no key, or several, are called so.
        """
        with self.engine.begin() as connection:
            found = connection.execute(
                sa.select(KEYS.c.id).where(sa.or_(KEYS.c.id == key, KEYS.c.prefix == key), KEYS.c.revoked.is_(None))
            ).scalars()
            ids = list(found)
            if len(ids) != 1:
                raise ValueError(f"{len(ids)} valid keys are called '{key}': give an id of `promptnet serve keys list`")
            connection.execute(KEYS.update().where(KEYS.c.id == ids[0]).values(revoked=time.time()))

    def _knows(self, user: str) -> bool:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(KEYS.c.id).where(KEYS.c.owner == user)).first() is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_id(kind: str) -> str:
    """A random name that says what kind of thing it is."""
    return f"{kind}_{secrets.token_hex(12)}"
