"""Server-sent events of a job: its place in the queue, its progress and tuning losses, the image as it stands,
its end."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from promptnet.serve.records import ENDED, Job
from promptnet.serve.service import Service
from promptnet.serve.store import Missing
from promptnet.serve.views import job_view

_LOOK_S = 0.2
_ALIVE_S = 15.0


async def job_events(service: Service, job: Job) -> AsyncIterator[ServerSentEvent]:
    """`queued`, `progress` and `preview` events where something changed, a comment where nothing does, and `ended`."""
    last: Any = None
    seen = 0
    quiet_s = 0.0
    while True:
        found = await run_in_threadpool(service.records.job, job.id, job.owner)
        if found is None:
            yield ServerSentEvent(event="ended", data={"id": job.id, "status": "canceled"})
            return
        losses = await run_in_threadpool(service.records.losses, job.id, seen)
        seen = losses[-1][0] if losses else seen
        if found.state in ENDED:
            if losses:
                yield _event(found, 0, losses)
            yield ServerSentEvent(event="ended", data=await run_in_threadpool(job_view, service, found))
            return
        place = await run_in_threadpool(service.records.place, found)
        now = (found.state, place, found.step)
        if now != last or losses:
            yield _event(found, place, losses)
            preview = await run_in_threadpool(_preview, service, found)
            if preview is not None:
                yield ServerSentEvent(event="preview", data={"step": found.step, "b64_json": preview})
            last, quiet_s = now, 0.0
        elif quiet_s > _ALIVE_S:
            yield ServerSentEvent(comment="alive")
            quiet_s = 0.0
        await asyncio.sleep(_LOOK_S)
        quiet_s += _LOOK_S


def _event(job: Job, place: int, losses: Sequence[tuple[int, float, float | None]]) -> ServerSentEvent:
    if job.state == "starting":
        return ServerSentEvent(event="queued", data={"status": job.state, "place": place})
    told: dict[str, Any] = {"status": job.state, "step": job.step, "num_steps": job.num_steps}
    if losses:
        told["losses"] = [dict(zip(("step", "loss", "held_out"), row, strict=True)) for row in losses]
    return ServerSentEvent(event="progress", data=told)


def _preview(service: Service, job: Job) -> str | None:
    try:
        return base64.b64encode(service.store.get(job.owner, "previews", job.id)).decode()
    except Missing:
        return None


async def wait_for_end(service: Service, job: Job) -> Job | None:
    """The job once it has ended; None if it was deleted."""
    found: Job | None = job
    while found is not None and found.state not in ENDED:
        await asyncio.sleep(_LOOK_S / 2)
        found = await run_in_threadpool(service.records.job, job.id, job.owner)
    return found
