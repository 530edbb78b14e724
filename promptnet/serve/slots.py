"""Numbered places for workers on many machines: whoever has slot n is executor n of the queue, and gets its jobs back.

On one machine the supervisor hands out slots and file locks keep them apart. Workers of a cluster claim theirs in the
database, and beat. A slot that was silent for `SILENT_S` is taken over, and with it the jobs of whoever had it; one who
was only slow, and finds the slot taken, ends its process at once. Clocks of the machines must agree within seconds.
"""

import secrets
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from promptnet.serve.database import SLOTS

SILENT_S = 30.0
MOST = 64


class NoSlot(RuntimeError):
    """All slots are held by workers that live."""


class Slot:
    """A claimed slot.

    Args:
        engine: of the database.
        number: which.
        holder: a random name of whoever claimed it.
    """

    def __init__(self, engine: sa.Engine, number: int, holder: str) -> None:
        self.engine, self.number, self.holder = engine, number, holder

    def beat(self, now: float | None = None) -> bool:
        """Say that the holder lives; false if the slot was taken over meanwhile."""
        own = (SLOTS.c.number == self.number, SLOTS.c.holder == self.holder)
        with self.engine.begin() as connection:
            query = SLOTS.update().where(*own).values(beat=time.time() if now is None else now)
            return connection.execute(query).rowcount == 1

    def release(self) -> None:
        """Leave it to the next, at once."""
        self.beat(now=0.0)


def claim_slot(engine: sa.Engine, now: float | None = None) -> Slot:
    """Claim the lowest slot that nobody holds.

    Raises:
        NoSlot: there is none.
    """
    now, holder = time.time() if now is None else now, secrets.token_hex(8)
    for number in range(MOST):
        if _take(engine, number, holder, now):
            return Slot(engine, number, holder)
    raise NoSlot(f"all {MOST} slots are held by workers that live")


def take_forsaken(engine: sa.Engine, now: float | None = None) -> list[int]:
    """Close the slots that were silent for too long; the jobs of those returned are the caller's to take over.

    So jobs go on where no new worker starts in place of one that died.
    """
    now = time.time() if now is None else now
    silent = SLOTS.c.beat < now - SILENT_S
    with engine.connect() as connection:
        numbers = list(connection.execute(sa.select(SLOTS.c.number).where(silent)).scalars())
    return [number for number in numbers if _close(engine, number, silent)]


def _close(engine: sa.Engine, number: int, silent: Any) -> bool:
    """Of two that close the same slot one is too late."""
    with engine.begin() as connection:
        return connection.execute(SLOTS.delete().where(SLOTS.c.number == number, silent)).rowcount == 1


def _take(engine: sa.Engine, number: int, holder: str, now: float) -> bool:
    """One statement decides, so of two that claim at once one is refused."""
    silent = (SLOTS.c.number == number, SLOTS.c.beat < now - SILENT_S)
    try:
        with engine.begin() as connection:
            if connection.execute(SLOTS.update().where(*silent).values(holder=holder, beat=now)).rowcount:
                return True
            connection.execute(SLOTS.insert().values(number=number, holder=holder, beat=now))
            return True
    except IntegrityError:  # somebody holds it
        return False
