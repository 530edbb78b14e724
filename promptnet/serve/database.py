"""The service's records: ids, times, states, sizes and tuning losses. No prompt, face, class word or file name.

SQLite and Postgres take the same statements. What a job is about lies in the store, encrypted; see `store.py`.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, Integer, MetaData, String, Table, event
from sqlalchemy.exc import SQLAlchemyError

_SCHEMA = MetaData()

KEYS = Table(
    "keys",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("hash", String, nullable=False, unique=True),
    Column("prefix", String, nullable=False),
    Column("scope", String, nullable=False),
    Column("limits", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
)
SUBJECTS = Table(
    "subjects",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("used", Float, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("tuned", Boolean, nullable=False),
    Column("num_references", Integer, nullable=False),
    Column("model", String, nullable=False),
)
CONSENTS = Table(
    "consents",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("owner", String, index=True),  # none once the user is deleted
    Column("job", String),
    Column("key", String, nullable=False),
    Column("time", Float, nullable=False),
    Column("version", String, nullable=False),
    Column("mark", String, nullable=False),
)
JOBS = Table(
    "jobs",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("key", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("step", Integer, nullable=False, default=0),
    Column("num_steps", Integer, nullable=False, default=0),
    Column("starts", Integer, nullable=False, default=0),
    Column("canceling", Boolean, nullable=False, default=False),
    Column("priority", Integer, nullable=False),
    Column("error", String),
    Column("idempotency", String),
    Column("request_mark", String),
    sa.UniqueConstraint("owner", "idempotency"),
)
JOB_SUBJECTS = Table(
    "job_subjects",
    _SCHEMA,
    Column("job", String, primary_key=True),
    Column("subject", String, primary_key=True, index=True),
)
LOSSES = Table(
    "losses",
    _SCHEMA,
    Column("job", String, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("loss", Float, nullable=False),
    Column("held_out", Float),
)
IMAGES = Table(
    "images",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("job", String, nullable=False, index=True),
    Column("place", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("bytes", Integer, nullable=False),
)
EDITS = Table(
    "edits",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
)
WORKERS = Table(
    "workers",
    _SCHEMA,
    Column("slot", String, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("beat", Float, nullable=False),
    Column("model", String, nullable=False),
    Column("counts", String, nullable=False),
)
SLOTS = Table(
    "slots",
    _SCHEMA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("holder", String, nullable=False),
    Column("beat", Float, nullable=False),
)
DELETIONS = Table(
    "deletions",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False),
    Column("time", Float, nullable=False),
    Column("mark", String, nullable=False),
)
OWNED = (SUBJECTS, JOBS, IMAGES, EDITS)
BUSY_TIMEOUT_S = 30


def open_database(url: str) -> sa.Engine:
    """Connect, and make the tables that are missing.

    Raises:
        ValueError: the database cannot be reached.
    """
    try:
        engine = connect(url)
        _SCHEMA.create_all(engine)
    except (SQLAlchemyError, ImportError) as error:
        # The URL may hold a password, and the error's own text holds the URL.
        raise ValueError(f"the database cannot be opened ({type(error).__name__}): check --database") from error
    return engine


def connect(url: str) -> sa.Engine:
    """An engine whose SQLite connections wait for each other, survive a power cut and overwrite what they delete."""
    engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if url.startswith("sqlite"):
        _make_private(engine.url.database)
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _make_private(path: str | None) -> None:
    """Make the file before SQLite does, so that nobody else reads it at any time."""
    if path and path != ":memory:" and not Path(path).exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = "IMMEDIATE"  # writers wait for each other, instead of failing in the middle
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_S * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "secure_delete = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def flush_deleted(engine: sa.Engine) -> None:
    """Empty SQLite's log of writes, so that what was deleted is in no file of it; a reader may delay that."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite database that is in use, whole as of one moment."""
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


def every_text(engine: sa.Engine) -> list[tuple[str, str]]:
    """Return every value of every table as (table, text), the queue's tables included, to look for traces."""
    found = []
    tables = MetaData()
    tables.reflect(engine)
    if engine.dialect.name != "sqlite":
        tables.reflect(engine, schema="dbos")
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            for row in connection.execute(sa.select(table)):
                found += [(table.name, str(value)) for value in row if value is not None]
    return found
