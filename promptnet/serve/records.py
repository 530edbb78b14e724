"""Jobs as their owners see them: accepted once, ended once, whatever dies in between.

    starting -> processing -> succeeded | failed | canceled

A job that was requeued is `starting` again. An end is written in one transaction with what the job made, and only
over a job that is running, so of two workers that finish the same job one is too late and leaves nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from promptnet.serve.database import CONSENTS, EDITS, IMAGES, JOB_SUBJECTS, JOBS, KEYS, LOSSES, SUBJECTS
from promptnet.serve.keys import Caller

Row = Mapping[Any, Any]
OPEN = ("starting", "processing")
ENDED = ("succeeded", "failed", "canceled")
MAX_STARTS = 3


class TooMany(Exception):
    """A limit of the caller's key is reached.

    Attributes:
        what: "open jobs", "subjects" or "bytes".
    """

    def __init__(self, what: str, most: int) -> None:
        super().__init__(f"your key allows {most} {what}")
        self.what = what


class KeyIsGone(Exception):
    """The key was revoked, or its user deleted, after the request had passed the gate."""


class IdempotencyConflict(Exception):
    """The same Idempotency-Key came with another request."""


@dataclass(frozen=True)
class NewJob:
    """What is known of a job when it is accepted.

    Args:
        id: made by the caller.
        kind: "subject", "images" or "edit".
        subjects: ids of those it draws.
        num_steps: of its progress.
        idempotency: keyed hash of the client's Idempotency-Key, or None.
        request_mark: keyed hash of the request.
        consent: row of the consent record, or None.
    """

    id: str
    kind: str
    subjects: Sequence[str] = ()
    num_steps: int = 0
    idempotency: str | None = None
    request_mark: str | None = None
    consent: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """A job's row."""

    id: str
    owner: str
    key: str
    kind: str
    state: str
    created: float
    started: float | None
    ended: float | None
    step: int
    num_steps: int
    starts: int
    canceling: bool
    priority: int
    error: str | None
    idempotency: str | None
    request_mark: str | None


class Records:
    """Rows of jobs, subjects, images and edits.

    Args:
        engine: of the database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    # -- accepting ----------------------------------------------------------------------------------------------------

    def accept(self, caller: Caller, new: NewJob, stored_bytes: int) -> tuple[Job, bool]:
        """Write a job down, or find the one that the same Idempotency-Key made before; the flag says whether it is new.

        The priority is how many open jobs the caller has: everybody's first job is before anybody's second.

        Raises:
            TooMany: a limit of the caller's key is reached.
            IdempotencyConflict: the earlier request was another one.
            KeyIsGone: the key was revoked meanwhile.
        """
        with self.engine.begin() as connection:
            _lock(connection, caller)
            earlier = _earlier(connection, caller, new)
            if earlier is not None:
                return earlier, False
            open_jobs = _count(connection, JOBS, JOBS.c.owner == caller.user, JOBS.c.state.in_(OPEN))
            _check_limits(connection, caller, new, open_jobs, stored_bytes)
            row = {"id": new.id, "owner": caller.user, "key": caller.key, "kind": new.kind, "state": "starting"}
            row |= {"created": time.time(), "priority": open_jobs + 1, "num_steps": new.num_steps}
            row |= {"idempotency": new.idempotency, "request_mark": new.request_mark}
            connection.execute(JOBS.insert().values(**row))
            for subject in dict.fromkeys(new.subjects):
                connection.execute(JOB_SUBJECTS.insert().values(job=new.id, subject=subject))
                connection.execute(SUBJECTS.update().where(SUBJECTS.c.id == subject).values(used=time.time()))
            if new.consent is not None:
                connection.execute(CONSENTS.insert().values(**new.consent))
            return _job(connection, JOBS.c.id == new.id), True  # type: ignore[return-value]

    # -- reading ------------------------------------------------------------------------------------------------------

    def job(self, job: str, user: str | None = None) -> Job | None:
        """A job by id; with a user only if it is theirs."""
        with self.engine.connect() as connection:
            return _job(connection, JOBS.c.id == job, *([] if user is None else [JOBS.c.owner == user]))

    def page(self, table: sa.Table, user: str, limit: int, before: tuple[float, str] | None) -> list[Row]:
        """A user's rows of a table, the newest first, those before (created, id)."""
        query = sa.select(table).where(table.c.owner == user)
        if before is not None:
            query = query.where(sa.tuple_(table.c.created, table.c.id) < sa.tuple_(*map(sa.literal, before)))
        query = query.order_by(table.c.created.desc(), table.c.id.desc()).limit(limit)
        with self.engine.connect() as connection:
            return [*connection.execute(query).mappings()]

    def owned(self, table: sa.Table, name: str, user: str) -> Row | None:
        """A user's row by id."""
        query = sa.select(table).where(table.c.id == name, table.c.owner == user)
        with self.engine.connect() as connection:
            return connection.execute(query).mappings().first()

    def all_owned(self, table: sa.Table, user: str) -> list[Row]:
        """All of a user's rows."""
        with self.engine.connect() as connection:
            return [*connection.execute(sa.select(table).where(table.c.owner == user)).mappings()]

    def images_of(self, job: str) -> list[Row]:
        """The images that a job drew, in order."""
        with self.engine.connect() as connection:
            query = sa.select(IMAGES).where(IMAGES.c.job == job).order_by(IMAGES.c.place)
            return [*connection.execute(query).mappings()]

    def subjects_of(self, job: str) -> list[str]:
        """The subjects that a job draws."""
        with self.engine.connect() as connection:
            return list(
                connection.execute(sa.select(JOB_SUBJECTS.c.subject).where(JOB_SUBJECTS.c.job == job)).scalars()
            )

    def num_images_of(self, subject: str) -> int:
        """How many images show a subject: what its deletion takes along."""
        jobs = sa.select(JOB_SUBJECTS.c.job).where(JOB_SUBJECTS.c.subject == subject)
        with self.engine.connect() as connection:
            return _count(connection, IMAGES, IMAGES.c.job.in_(jobs))

    def losses(self, job: str, after_step: int = 0) -> list[tuple[int, float, float | None]]:
        """The tuning losses of a job as (step, of its batch, at held-out noise levels), from a step on."""
        query = sa.select(LOSSES.c.step, LOSSES.c.loss, LOSSES.c.held_out)
        query = query.where(LOSSES.c.job == job, LOSSES.c.step > after_step).order_by(LOSSES.c.step)
        with self.engine.connect() as connection:
            return [(step, loss, held_out) for step, loss, held_out in connection.execute(query)]

    def place(self, job: Job) -> int:
        """How many jobs are before this one; 0 for one that runs."""
        if job.state != "starting":
            return 0
        before = sa.tuple_(JOBS.c.priority, JOBS.c.created) < sa.tuple_(
            sa.literal(job.priority), sa.literal(job.created)
        )
        with self.engine.connect() as connection:
            return 1 + _count(connection, JOBS, JOBS.c.state == "starting", before)

    def num_waiting(self) -> int:
        """How many jobs of everybody wait."""
        with self.engine.connect() as connection:
            return _count(connection, JOBS, JOBS.c.state == "starting")

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs by kind and state."""
        query = sa.select(JOBS.c.kind, JOBS.c.state, sa.func.count()).group_by(JOBS.c.kind, JOBS.c.state)
        with self.engine.connect() as connection:
            return {(kind, state): count for kind, state, count in connection.execute(query)}

    def jobs_in(self, states: Sequence[str], before: float | None = None) -> list[Job]:
        """Everybody's jobs in these states; only those created before a time."""
        conditions = [JOBS.c.state.in_(states)] + ([] if before is None else [JOBS.c.created < before])
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(JOBS).where(*conditions).order_by(JOBS.c.created)).mappings()
            return [Job(**row) for row in rows]

    # -- running ------------------------------------------------------------------------------------------------------

    def begin(self, job: str) -> Job | None:
        """Count a start; None if the job has ended or was deleted."""
        values = {"state": "processing", "started": time.time(), "starts": JOBS.c.starts + 1}
        with self.engine.begin() as connection:
            query = JOBS.update().where(JOBS.c.id == job, JOBS.c.state.in_(OPEN)).values(**values)
            if not connection.execute(query).rowcount:
                return None
            connection.execute(LOSSES.delete().where(LOSSES.c.job == job))  # of a start that died
            return _job(connection, JOBS.c.id == job)

    def progress(
        self, job: str, step: int, num_steps: int, loss: float | None = None, held_out: float | None = None
    ) -> bool:
        """Write down how far a job is; false if it is to stop: canceled, ended or deleted.

        Args:
            job: its id.
            step: steps done.
            num_steps: of all.
            loss: of a tuning step's batch.
            held_out: the loss at held-out noise levels, at the last look.
        """
        with self.engine.begin() as connection:
            running = (JOBS.c.id == job, JOBS.c.state == "processing", JOBS.c.canceling.is_(False))
            query = JOBS.update().where(*running).values(step=step, num_steps=num_steps)
            if connection.execute(query).rowcount != 1:
                return False
            if loss is not None:
                connection.execute(LOSSES.insert().values(job=job, step=step, loss=loss, held_out=held_out))
            return True

    def requeue(self, job: str) -> None:
        """Let a job wait again; a start that was asked to stop does not count as a death."""
        values = {"state": "starting", "step": 0, "starts": JOBS.c.starts - 1}
        with self.engine.begin() as connection:
            connection.execute(JOBS.update().where(JOBS.c.id == job, JOBS.c.state == "processing").values(**values))

    def end(
        self,
        job: str,
        state: str,
        *,
        error: str | None = None,
        subject: Mapping[str, Any] | None = None,
        images: Sequence[Mapping[str, Any]] = (),
    ) -> bool:
        """End a running job together with what it made; false if it had ended before, was canceled or deleted."""
        with self.engine.begin() as connection:
            running = [JOBS.c.id == job, JOBS.c.state == "processing"]
            running += [JOBS.c.canceling.is_(False)] if state == "succeeded" else []
            values = {"state": state, "ended": time.time(), "error": error}
            if not connection.execute(JOBS.update().where(*running).values(**values)).rowcount:
                return False
            if subject is not None:
                connection.execute(SUBJECTS.insert().values(**subject))
                connection.execute(JOB_SUBJECTS.insert().values(job=job, subject=subject["id"]))
            for image in images:
                connection.execute(IMAGES.insert().values(**image))
            return True

    def give_up(self, job: str, error: str) -> bool:
        """Fail a job that nobody will run; false if it has ended."""
        values = {"state": "failed", "ended": time.time(), "error": error}
        with self.engine.begin() as connection:
            query = JOBS.update().where(JOBS.c.id == job, JOBS.c.state.in_(OPEN)).values(**values)
            return connection.execute(query).rowcount == 1

    def cancel(self, job: str) -> bool:
        """Cancel a waiting job at once, ask a running one to stop; false if it has ended."""
        with self.engine.begin() as connection:
            waiting = JOBS.update().where(JOBS.c.id == job, JOBS.c.state == "starting")
            if connection.execute(waiting.values(state="canceled", ended=time.time())).rowcount:
                return True
            running = JOBS.update().where(JOBS.c.id == job, JOBS.c.state == "processing")
            return connection.execute(running.values(canceling=True)).rowcount == 1

    # -- removing -----------------------------------------------------------------------------------------------------

    def remove(self, table: sa.Table, *names: str) -> None:
        """Remove rows by id."""
        with self.engine.begin() as connection:
            connection.execute(table.delete().where(table.c.id.in_(names)))

    def add_edit(self, caller: Caller, row: Mapping[str, Any], stored_bytes: int) -> None:
        """Write down an edit card.

        Raises:
            TooMany: the caller has stored too much.
        """
        with self.engine.begin() as connection:
            _lock(connection, caller)
            if stored_bytes > caller.limits.bytes:
                raise TooMany("bytes", caller.limits.bytes)
            connection.execute(EDITS.insert().values(**row))


def _lock(connection: sa.Connection, caller: Caller) -> None:
    """One accepting transaction at a time for each key: a write first, which SQLite and Postgres both wait for."""
    own = (KEYS.c.id == caller.key, KEYS.c.owner == caller.user, KEYS.c.revoked.is_(None))
    if not connection.execute(KEYS.update().where(*own).values(prefix=KEYS.c.prefix)).rowcount:
        raise KeyIsGone


def _job(connection: sa.Connection, *conditions: Any) -> Job | None:
    row = connection.execute(sa.select(JOBS).where(*conditions)).mappings().first()
    return None if row is None else Job(**row)


def _count(connection: sa.Connection, table: sa.Table, *conditions: Any) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(table).where(*conditions)).scalar_one()


def _earlier(connection: sa.Connection, caller: Caller, new: NewJob) -> Job | None:
    if new.idempotency is None:
        return None
    found = _job(connection, JOBS.c.owner == caller.user, JOBS.c.idempotency == new.idempotency)
    if found is not None and found.request_mark != new.request_mark:
        raise IdempotencyConflict
    return found


def _check_limits(connection: sa.Connection, caller: Caller, new: NewJob, open_jobs: int, stored_bytes: int) -> None:
    limits = caller.limits
    if open_jobs >= limits.open_jobs:
        raise TooMany("open jobs", limits.open_jobs)
    if new.kind == "subject":
        stored = _count(connection, SUBJECTS, SUBJECTS.c.owner == caller.user)
        stored += _count(
            connection, JOBS, JOBS.c.owner == caller.user, JOBS.c.kind == "subject", JOBS.c.state.in_(OPEN)
        )
        if stored >= limits.subjects:
            raise TooMany("subjects", limits.subjects)
    if stored_bytes > limits.bytes:
        raise TooMany("bytes", limits.bytes)
