"""What time does: subjects and images expire, jobs are forgotten, what a death left half done is put right."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from promptnet.serve.database import EDITS, IMAGES, JOBS, KEYS, SUBJECTS
from promptnet.serve.deletion import delete_image, delete_jobs, delete_subject
from promptnet.serve.logs import log, log_error
from promptnet.serve.records import ENDED, OPEN
from promptnet.serve.service import Service
from promptnet.serve.settings import DAY_S
from promptnet.serve.store import KINDS

_SETTLED_S = 5.0
_ORPHAN_S = 600.0


class Sweeper(threading.Thread):
    """Sweeps once at the start, and then as often as the settings say.

    Args:
        service: whose data are swept.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(name="sweeper", daemon=True)
        self.service, self.stopping = service, threading.Event()

    def run(self) -> None:
        while True:
            try:
                sweep(self.service)
            except Exception as error:  # the disk may be full now, and not in a minute
                log_error("sweep failed", error)
            if self.stopping.wait(self.service.settings.sweep_s):
                return

    def stop(self) -> None:
        self.stopping.set()
        self.join(timeout=2)


def sweep(service: Service, now: float | None = None) -> None:
    """Do once whatever is due.

    Args:
        service: whose data are swept.
        now: the time, for tests.
    """
    now = time.time() if now is None else now
    reconcile(service, now)
    expire(service, now)
    remove_orphans(service, now)


def reconcile(service: Service, now: float) -> None:
    """Queue jobs that were accepted and not queued; fail those that the queue is done with and nobody ended."""
    waiting = service.records.jobs_in(OPEN, now - _SETTLED_S)
    known = service.queue.ended([job.id for job in waiting])
    for job in waiting:
        if job.id not in known and service.records.job(job.id) is not None:
            service.enqueue(job)
        elif known.get(job.id) and service.records.give_up(job.id, "internal"):
            log("given up", job=job.id, kind=job.kind)


def expire(service: Service, now: float) -> None:
    """Delete what is older than the settings allow."""
    settings = service.settings
    with service.engine.connect() as connection:
        old = SUBJECTS.c.used < now - settings.subject_days * DAY_S
        subjects = connection.execute(sa.select(SUBJECTS.c.owner, SUBJECTS.c.id).where(old)).all()
        images = connection.execute(sa.select(IMAGES.c.owner, IMAGES.c.id).where(IMAGES.c.expires < now)).all()
        ended = (JOBS.c.state.in_(ENDED), JOBS.c.ended < now - settings.job_days * DAY_S)
        unseen = ~sa.exists().where(IMAGES.c.job == JOBS.c.id)
        jobs = connection.execute(sa.select(JOBS.c.owner, JOBS.c.id).where(*ended, unseen)).all()
    for owner, subject in subjects:
        delete_subject(service, owner, subject)
    for owner, image in images:
        delete_image(service, owner, image)
    for owner, job in jobs:
        delete_jobs(service, owner, [job])
    if subjects or images or jobs:
        log("expired", count=len(subjects) + len(images) + len(jobs))


def remove_orphans(service: Service, now: float) -> None:
    """Remove files that no row knows, which a worker left when it died, and what belongs to nobody."""
    with service.engine.connect() as connection:
        users = set(connection.execute(sa.select(KEYS.c.owner)).scalars())
    for user in set(service.store.users()) | set(service.vault.users()):
        if user not in users:
            service.store.remove_user(user)
            continue
        for kind in KINDS:
            for path in (service.store.folder / user / kind).glob("*"):
                if _is_old(path, now) and not _is_known(service, user, kind, path.name):
                    path.unlink(missing_ok=True)


def _is_old(path: Path, now: float) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime < now - _ORPHAN_S
    return False


def _is_known(service: Service, user: str, kind: str, name: str) -> bool:
    if kind in ("requests", "previews"):
        job = service.records.job(name, user)
        return job is not None and job.state in OPEN
    if kind == "results":
        return service.records.job(name, user) is not None
    table = {"subjects": SUBJECTS, "thumbnails": SUBJECTS, "images": IMAGES, "edits": EDITS}[kind]
    return service.records.owned(table, name, user) is not None
