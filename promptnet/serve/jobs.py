"""The durable queue: DBOS, behind the few things that the service needs of it.

Five conditions, without which it would not hold what the service promises:

1. arguments are job ids alone, as JSON, never pickles: what a job is about lies in the store;
2. the application version is pinned, so that an upgrade takes over the jobs of the version before;
3. each worker slot has an id of its own that it keeps over restarts: a process that starts with the id of a dead one
   gets its jobs back (locks of the supervisor, or `slots.py` in a cluster, see to it that never two live with one id);
4. results are written under the job's id by rename, and the end in one transaction (`records.py`), so that a job that
   runs twice changes nothing the second time;
5. a job that took its worker down three times fails (`records.MAX_STARTS`), and does not take it down forever.

A job that is accepted but not yet in the queue, because the server died between the two, is put there by `enqueue`
when the server starts again; the id makes that harmless.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from promptnet.serve.database import connect

QUEUE = "promptnet"
VERSION = "promptnet-jobs-1"
_WORKFLOW = "run_job"
_POLLING_S = 0.3  # what a job waits at most; ten times a second cost an idle worker 6 % of a core
_OPEN = ("ENQUEUED", "DELAYED", "PENDING")
_MOST_SLOTS = 64
_HERE: dict[str, Callable[[str], None]] = {}


class Queue:
    """The queue as the server sees it: it puts jobs in, and takes them out.

    Args:
        url: of the database.
    """

    def __init__(self, url: str) -> None:
        from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer

        silence()
        DBOS.migrate(url)
        self._engine = _engine(url)
        self._client = DBOSClient(
            system_database_url=url,
            system_database_engine=self._engine,
            serializer=DBOSPortableJSONSerializer(),
        )

    def enqueue(self, job: str, priority: int) -> None:
        """Put a job in; one that is there already stays as it is."""
        self._client.enqueue(
            {
                "workflow_name": _WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": job,
                "app_version": VERSION,
                "priority": priority,
            },
            job,
        )

    def ended(self, jobs: Sequence[str]) -> dict[str, bool]:
        """For those of these jobs that are in the queue, whether it is done with them."""
        if not jobs:
            return {}
        found = self._client.list_workflows(workflow_ids=list(jobs), load_input=False, load_output=False)
        return {row.workflow_id: row.status not in _OPEN for row in found}

    def remove(self, jobs: Sequence[str]) -> None:
        """Take jobs out, and every trace of them; those that are not there are no error."""
        if jobs:
            self._client.cancel_workflows(list(jobs))
            self._client.delete_workflows(list(jobs))

    def close(self) -> None:
        self._client.destroy()
        if self._engine is not None:
            self._engine.dispose()


def _engine(url: str) -> Any:
    """Ours for SQLite, so that what the queue deletes is overwritten too; DBOS' own for Postgres."""
    return connect(url) if url.startswith("sqlite") else None


def executor_id(slot: int) -> str:
    """The id that a worker slot keeps."""
    return f"slot-{slot}"


def work(url: str, slot: int, run: Callable[[str], None], jobs_at_once: int, num_slots: int = 1) -> None:
    """Run jobs from the queue in threads of this process, from now on; those first that this executor left behind.

    Args:
        url: of the database.
        slot: number of this worker.
        run: called with a job's id; what it raises would end the job for the queue, so it raises nothing.
        jobs_at_once: how many threads.
        num_slots: of the service. What higher slots left behind, when there were more, is the first slot's.
    """
    from dbos import DBOS, DBOSPortableJSONSerializer

    silence()
    _HERE["run"] = run
    _workflow()
    DBOS(
        config={
            "name": "promptnet",
            "system_database_url": url,
            "system_database_engine": _engine(url),
            "application_version": VERSION,
            "executor_id": executor_id(slot),
            "serializer": DBOSPortableJSONSerializer(),
            "notification_listener_polling_interval_sec": 1.0,
            "use_listen_notify": False,
        }
    )
    silence()
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=jobs_at_once, polling_interval_sec=_POLLING_S, on_conflict="always_update"
    )
    if slot == 0:
        DBOS._recover_pending_workflows([executor_id(other) for other in range(num_slots, _MOST_SLOTS)])


def take_over(slots: Sequence[int]) -> None:
    """Run what these slots left behind, here or wherever there is room."""
    from dbos import DBOS

    if slots:
        DBOS._recover_pending_workflows([executor_id(slot) for slot in slots])


def stop() -> None:
    """Take no further jobs; those that run go on."""
    from dbos import DBOS

    DBOS.destroy(workflow_completion_timeout_sec=0)


def _workflow() -> None:
    """Register the one workflow, once in a process."""
    from dbos import DBOS

    if "registered" in _HERE:
        return

    @DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=100)  # ours counts deaths, and graceful stops are none
    def run_job(job: str) -> None:
        _HERE["run"](job)

    _HERE["registered"] = run_job


def silence() -> None:
    """Let DBOS log through the service's own handler, and warnings alone."""
    logger: Any = logging.getLogger("dbos")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(logging.NullHandler())  # or DBOS would add its own again
    logger.propagate = True
    logger.setLevel(logging.WARNING)
