"""What a worker says of itself twice a second: that it lives, which model it has, what it has counted."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from promptnet.serve.database import SUBJECTS, WORKERS
from promptnet.serve.logs import log_error

FRESH_S = 30.0


class Heartbeat:
    """The row of one worker.

    Args:
        worker: whose model and counts it tells.
        slot: its number.
    """

    def __init__(self, worker: Any, slot: int) -> None:
        self.worker, self.slot, self.engine = worker, str(slot), worker.records.engine

    def write(self, *, ready: bool) -> None:
        """Write the row, and drop subjects that were deleted; a database that does not answer is not the end."""
        try:
            self._write(ready)
            self._drop_deleted()
        except SQLAlchemyError as error:
            log_error("no heartbeat", error, slot=self.slot)

    def _write(self, ready: bool) -> None:
        together = self.worker.together
        counts = {**self.worker.counts, **together.counts, "unet_seconds": together.seconds}
        counts["subjects_cached"] = len(self.worker.subjects)
        row = {"pid": os.getpid(), "ready": ready, "beat": time.time()}
        row |= {"model": json.dumps(self.worker.model), "counts": json.dumps(counts)}
        with self.engine.begin() as connection:
            if not connection.execute(WORKERS.update().where(WORKERS.c.slot == self.slot).values(**row)).rowcount:
                connection.execute(WORKERS.insert().values(slot=self.slot, **row))

    def _drop_deleted(self) -> None:
        names = self.worker.subjects.names()
        if names:
            with self.engine.connect() as connection:
                query = sa.select(SUBJECTS.c.id).where(SUBJECTS.c.id.in_(names))
                self.worker.subjects.keep_only(connection.execute(query).scalars())


def fresh_workers(engine: sa.Engine) -> Sequence[Any]:
    """Rows of workers that are ready and were heard of lately."""
    query = sa.select(WORKERS).where(WORKERS.c.ready, WORKERS.c.beat > time.time() - FRESH_S)
    with engine.connect() as connection:
        return connection.execute(query).mappings().all()


def known_model(engine: sa.Engine) -> dict[str, Any] | None:
    """The model that a worker last told of."""
    with engine.connect() as connection:
        row = connection.execute(sa.select(WORKERS.c.model).order_by(WORKERS.c.beat.desc())).first()
    return None if row is None else json.loads(row[0])
