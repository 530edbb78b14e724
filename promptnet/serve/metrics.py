"""Prometheus' metrics, on a port of their own: counts and times, never who, whom or what."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from threading import Lock
from typing import Any

import sqlalchemy as sa

from promptnet.serve.database import SUBJECTS, WORKERS
from promptnet.serve.records import Records

_LOCK = Lock()
_REFUSALS: Counter[str] = Counter()


def count_refusal(reason: str) -> None:
    """Count a request that was refused, by the code of its problem."""
    with _LOCK:
        _REFUSALS[reason] += 1


class Collector:
    """What the records and the workers' own counts say when Prometheus asks.

    Args:
        records: of the service.
    """

    def __init__(self, records: Records) -> None:
        self.records = records

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        jobs = GaugeMetricFamily("promptnet_jobs", "jobs by kind and state", labels=["kind", "state"])
        for (kind, state), count in sorted(self.records.counts().items()):
            jobs.add_metric([kind, state], count)
        yield jobs
        waiting = self.records.jobs_in(("starting",))
        yield GaugeMetricFamily("promptnet_queue_depth", "jobs that wait", value=len(waiting))
        longest_s = time.time() - waiting[0].created if waiting else 0.0
        yield GaugeMetricFamily("promptnet_longest_wait_seconds", "of a job that waits", value=longest_s)
        yield GaugeMetricFamily("promptnet_subjects", "stored subjects", value=self._num_subjects())
        refusals = CounterMetricFamily("promptnet_refused_requests", "by reason", labels=["reason"])
        with _LOCK:
            for reason, count in sorted(_REFUSALS.items()):
                refusals.add_metric([reason], count)
        yield refusals
        yield from self._of_workers()

    def _num_subjects(self) -> int:
        with self.records.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(SUBJECTS)).scalar_one()

    def _of_workers(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self.records.engine.connect() as connection:
            rows = connection.execute(sa.select(WORKERS)).mappings().all()
        alive = GaugeMetricFamily("promptnet_worker_ready", "1 if its last beat is fresh", labels=["slot"])
        cached = GaugeMetricFamily("promptnet_subjects_cached", "in a worker's memory", labels=["slot"])
        counts = {
            name: CounterMetricFamily(f"promptnet_{name}", about, labels=["slot"])
            for name, about in (
                ("unet_calls", "evaluations of the U-Net"),
                ("unet_rows", "rows of these"),
                ("unet_seconds", "time in these"),
                ("wait_seconds", "from acceptance to start, of all jobs"),
                ("jobs_started", "starts of jobs"),
            )
        }
        for row in rows:
            said = json.loads(row["counts"])
            alive.add_metric([row["slot"]], float(row["ready"] and time.time() - row["beat"] < 30))
            cached.add_metric([row["slot"]], said.get("subjects_cached", 0))
            for name, family in counts.items():
                family.add_metric([row["slot"]], said.get(name, 0))
        yield from (alive, cached, *counts.values())


def serve_metrics(records: Records, host: str, port: int) -> Any:
    """Answer GET /metrics on a port of its own; what is returned has a `shutdown`."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(Collector(records))  # type: ignore[arg-type]
    server, _thread = start_http_server(port, host, registry)
    return server
