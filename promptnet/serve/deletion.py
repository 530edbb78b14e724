"""Deletion, and the proof of it.

The user's data key goes first: from then on nothing of theirs can be read, here or in any copy. Then files, rows and
queue entries. What remains is a receipt's number, the key's id, times, versions of consent texts and keyed hashes.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from promptnet.serve.consent import forget_owner
from promptnet.serve.database import (
    CONSENTS,
    DELETIONS,
    EDITS,
    IMAGES,
    JOB_SUBJECTS,
    JOBS,
    KEYS,
    LOSSES,
    OWNED,
    SUBJECTS,
    every_text,
    flush_deleted,
)
from promptnet.serve.keys import Caller, new_id
from promptnet.serve.logs import log
from promptnet.serve.service import Service
from promptnet.serve.settings import Settings


def delete_user(service: Service, caller: Caller) -> dict[str, Any]:
    """Delete everything of the caller's; the key stays valid, for a user who has nothing.

    Returns:
        The receipt: what was deleted, by id.
    """
    user, receipt, now = caller.user, new_id("receipt"), time.time()
    rows = {table.name: [row["id"] for row in service.records.all_owned(table, user)] for table in OWNED}
    service.store.remove_user(user)
    with service.engine.begin() as connection:
        for table in (JOB_SUBJECTS, LOSSES):
            connection.execute(table.delete().where(table.c.job.in_(_jobs_of(user))))
        for table in OWNED:
            connection.execute(table.delete().where(table.c.owner == user))
        forget_owner(connection, user)
        connection.execute(KEYS.update().where(KEYS.c.owner == user).values(owner=new_id("user")))
        mark = service.vault.mark("deletion", user)
        connection.execute(DELETIONS.insert().values(id=receipt, key=caller.key, time=now, mark=mark))
    service.queue.remove(rows["jobs"])
    service.store.remove_user(user)  # what a worker wrote meanwhile
    flush_deleted(service.engine)
    log("user deleted", count=sum(map(len, rows.values())))
    ids = [user, *(name for names in rows.values() for name in names)]
    return {
        "id": receipt,
        "object": "deletion",
        "deleted_at": now,
        "counts": {name: len(names) for name, names in rows.items()},
        "ids": ids,
    }


def _jobs_of(user: str) -> Any:
    return sa.select(JOBS.c.id).where(JOBS.c.owner == user)


def delete_subject(service: Service, user: str, subject: str) -> None:
    """Delete a subject, the jobs that made or drew it, and the images they drew."""
    with service.engine.connect() as connection:
        query = sa.select(JOB_SUBJECTS.c.job).where(JOB_SUBJECTS.c.subject == subject)
        jobs = list(connection.execute(query).scalars())
    delete_jobs(service, user, jobs)
    for kind in ("subjects", "thumbnails"):
        service.store.remove(user, kind, subject)
    with service.engine.begin() as connection:
        connection.execute(SUBJECTS.delete().where(SUBJECTS.c.id == subject))
        connection.execute(JOB_SUBJECTS.delete().where(JOB_SUBJECTS.c.subject == subject))
        connection.execute(CONSENTS.update().where(CONSENTS.c.job.in_(jobs)).values(owner=None, job=None))
    flush_deleted(service.engine)


def delete_jobs(service: Service, user: str, jobs: Sequence[str]) -> None:
    """Delete jobs of a user, running or not, with their images and their places in the queue."""
    with service.engine.begin() as connection:
        images = list(connection.execute(sa.select(IMAGES.c.id).where(IMAGES.c.job.in_(jobs))).scalars())
        connection.execute(IMAGES.delete().where(IMAGES.c.job.in_(jobs)))
        for table in (JOB_SUBJECTS, LOSSES):
            connection.execute(table.delete().where(table.c.job.in_(jobs)))
        connection.execute(JOBS.delete().where(JOBS.c.id.in_(jobs)))
    service.store.remove(user, "images", *images)
    for kind in ("requests", "results", "previews"):
        service.store.remove(user, kind, *jobs)
    service.queue.remove(jobs)


def delete_image(service: Service, user: str, image: str) -> None:
    """Delete one image."""
    service.records.remove(IMAGES, image)
    service.store.remove(user, "images", image)


def delete_edit(service: Service, user: str, edit: str) -> None:
    """Delete an edit card."""
    service.records.remove(EDITS, edit)
    service.store.remove(user, "edits", edit)


# -- proof ------------------------------------------------------------------------------------------------------------


def find_traces(settings: Settings, engine: sa.Engine, words: Sequence[str]) -> list[str]:
    """Where any of these words is still found: in the database, in a file's name or in its content."""
    found = [f"table {table}" for table, text in every_text(engine) if any(word in text for word in words)]
    for path in files_below(settings.data):
        name = path.relative_to(settings.data).as_posix()
        if any(word in name for word in words):
            found.append(f"name of {name}")
        elif _holds(path, [word.encode() for word in words]):
            found.append(f"content of {name}")
    return sorted(set(found))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file and folder."""
    yield from (path for path in folder.rglob("*"))


def _holds(path: Path, words: Sequence[bytes], chunk_bytes: int = 1 << 20) -> bool:
    if not path.is_file() or not words:
        return False
    overlap, tail = max(map(len, words)) - 1, b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(chunk_bytes):
                text = tail + chunk
                if any(word in text for word in words):
                    return True
                tail = text[-overlap:] if overlap else b""
    except FileNotFoundError:  # SQLite's files come and go
        pass
    return False
