"""Rows as answers."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promptnet.serve.problems import invalid
from promptnet.serve.records import ENDED, Job
from promptnet.serve.service import Service
from promptnet.serve.settings import DAY_S
from promptnet.serve.store import Missing

_MESSAGES = {
    "poisonous": "The worker died again and again while it did this job.",
    "internal": "The job failed; the service logged where.",
    "storage": "The disk is full.",
    "gone": "What the job needs was deleted meanwhile.",
    "invalid": "What is asked cannot be drawn.",
}


def job_view(service: Service, job: Job) -> dict[str, Any]:
    """A job as its owner sees it."""
    view: dict[str, Any] = {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "status": job.state,
        "created_at": job.created,
        "started_at": job.started,
        "completed_at": job.ended,
        "place": service.records.place(job),
        "progress": {"step": job.step, "num_steps": job.num_steps},
        "output": _output(service, job) if job.state == "succeeded" else None,
        "error": _error(service, job) if job.state == "failed" else None,
        "urls": {"get": f"/v1/jobs/{job.id}", "events": f"/v1/jobs/{job.id}/events"},
    }
    if job.state not in ENDED:
        view["urls"]["cancel"] = f"/v1/jobs/{job.id}/cancel"
    return view


def _output(service: Service, job: Job) -> dict[str, Any]:
    if job.kind == "subject":
        found = service.records.subjects_of(job.id)
        return {"subject": found[0] if found else None}
    seeds = _said(service, job).get("seeds", [])
    rows = service.records.images_of(job.id)
    images = [{"id": row["id"], "url": f"/v1/images/{row['id']}", "seed": _at(seeds, row["place"])} for row in rows]
    return {"images": images}


def _at(seeds: Sequence[int], place: int) -> int | None:
    return seeds[place] if place < len(seeds) else None


def _error(service: Service, job: Job) -> dict[str, str]:
    code = job.error or "internal"
    return {"code": code, "message": _said(service, job).get("message") or _MESSAGES.get(code, code)}


def _said(service: Service, job: Job) -> dict[str, Any]:
    try:
        return json.loads(service.store.get(job.owner, "results", job.id))
    except Missing:
        return {}


def subject_view(service: Service, row: Mapping[str, Any]) -> dict[str, Any]:
    """A subject's facts, and nothing of the face."""
    expires = row["used"] + service.settings.subject_days * DAY_S
    own = {name: row[name] for name in ("id", "bytes", "tuned", "num_references")}
    own |= {"num_images": service.records.num_images_of(row["id"])}
    return {**own, "object": "subject", "created_at": row["created"], "used_at": row["used"], "expires_at": expires}


def edit_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """An edit card of a user's."""
    return {"id": row["id"], "object": "edit", "owned": True, "created_at": row["created"], "bytes": row["bytes"]}


def page_of(
    rows: Sequence[Mapping[str, Any]], limit: int, view: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """A page of at most `limit` rows; one row more than that says that there is another page."""
    shown = rows[:limit]
    cursor = cursor_after(shown[-1]) if len(rows) > limit else None
    return {"object": "list", "data": [view(row) for row in shown], "next_cursor": cursor}


def cursor_after(row: Mapping[str, Any]) -> str:
    """Where the next page begins."""
    return base64.urlsafe_b64encode(json.dumps([row["created"], row["id"]]).encode()).decode()


def parse_cursor(cursor: str | None) -> tuple[float, str] | None:
    """(created, id) of a cursor.

    Raises:
        Problem: 422; it is none of ours.
    """
    if cursor is None:
        return None
    try:
        created, name = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not isinstance(created, float) or not isinstance(name, str) or "\0" in name:
            raise ValueError(cursor)
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise invalid("cursor must be the next_cursor of a page", "cursor") from error
    return created, name
