"""The jobs API: what is asked becomes a job at once, and is looked after by its id."""

import base64
import time
from collections.abc import AsyncIterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Security
from fastapi.responses import Response, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from promptnet.serve import consent, schemas
from promptnet.serve.archive import archive
from promptnet.serve.database import EDITS, IMAGES, JOBS, SUBJECTS
from promptnet.serve.deletion import delete_edit, delete_image, delete_subject, delete_user
from promptnet.serve.events import job_events
from promptnet.serve.forms import form_schema, read_form
from promptnet.serve.heartbeat import fresh_workers
from promptnet.serve.keys import Caller, new_id
from promptnet.serve.problems import Problem, invalid, not_found, too_many, unauthorized
from promptnet.serve.records import ENDED, Job, KeyIsGone, TooMany
from promptnet.serve.service import Service, checked_id
from promptnet.serve.store import Missing
from promptnet.serve.uploads import clean_image
from promptnet.serve.views import edit_view, job_view, page_of, parse_cursor, subject_view

_bearer = HTTPBearer(auto_error=False, description="a key of `promptnet serve keys add`")


def service_of(request: Request) -> Service:
    return request.app.state.service


def caller_of(request: Request, _declared: Annotated[Any, Security(_bearer)] = None) -> Caller:
    """Who calls; the gate found out."""
    return request.state.caller


Known = Annotated[Service, Depends(service_of)]
Who = Annotated[Caller, Depends(caller_of)]
Idempotency = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Limit = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str | None, Query(max_length=200)]

_PROBLEM: Any = {"content": {"application/problem+json": {}}}
ERRORS: Any = {status: {**_PROBLEM, "description": "problem"} for status in (401, 404, 409, 413, 415, 422, 429, 503)}
router = APIRouter(prefix="/v1", responses=ERRORS)
open_router = APIRouter()


# -- the service itself -----------------------------------------------------------------------------------------------


@open_router.get("/healthz", tags=["service"])
def health() -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ok"}


@open_router.get("/readyz", tags=["service"], responses={503: {**_PROBLEM, "description": "not yet"}})
def ready(service: Known) -> dict[str, str]:
    """Whether the database answers and a worker has its model."""
    if not fresh_workers(service.engine):
        raise Problem(503, "starting", "No worker is ready.", {"Retry-After": "2"})
    return {"status": "ok"}


@router.get("/models", tags=["service"])
def models(service: Known, _who: Who) -> dict[str, Any]:
    """The base model, in OpenAI's form."""
    model = service.model()
    size = "x".join(map(str, model["size_px"]))
    own = {"size": size, **{name: model[name] for name in ("multiple_px", "num_inference_steps", "sampling")}}
    entry = {"id": model["name"], "object": "model", "created": 0, "owned_by": "promptnet", **own}
    return {"object": "list", "data": [entry]}


@router.get("/consent", tags=["service"])
def consent_text(_who: Who) -> dict[str, str]:
    """The statement that `consent=true` makes, and its version."""
    return consent.statement()


@router.get("/admin/workers", tags=["service"], responses={403: {**_PROBLEM, "description": "not an admin"}})
def workers(service: Known, _who: Who) -> dict[str, Any]:
    """For admins: which workers live, and how many jobs are in which state."""
    rows = [{"slot": row["slot"], "seconds": time.time() - row["beat"]} for row in fresh_workers(service.engine)]
    jobs = [
        {"kind": kind, "status": state, "count": count} for (kind, state), count in service.records.counts().items()
    ]
    return {"workers": rows, "jobs": jobs}


# -- subjects ---------------------------------------------------------------------------------------------------------


@router.post(
    "/subjects",
    status_code=202,
    response_model=schemas.JobView,
    tags=["subjects"],
    openapi_extra=form_schema(schemas.SubjectRequest, "images"),
)
async def make_subject(request: Request, service: Known, who: Who, idempotency_key: Idempotency = None) -> Any:
    """Learn a person from images: multipart with `images`, `class_word` and `consent`."""
    form = await read_form(request, files=("images", "image"), max_files=service.settings.max_references)
    asked = form.checked(schemas.SubjectRequest)
    check_consent(asked.consent)
    if (asked.steps or 1) > service.settings.max_steps:
        raise invalid(f"steps={asked.steps} must be at most {service.settings.max_steps}", "steps")
    job = await run_in_threadpool(_submit_subject, service, who, asked, form.files, idempotency_key)
    return await run_in_threadpool(job_view, service, job)


def check_consent(given: bool) -> None:
    """Refuse images without it.

    Raises:
        Problem: 422.
    """
    if not given:
        raise invalid("images of a person need consent=true, which makes the statement of GET /v1/consent", "consent")


def cleaned(service: Service, files: list[bytes], field: str) -> list[str]:
    """Images as requests hold them."""
    pixels = service.settings.max_pixels
    return [base64.b64encode(clean_image(data, pixels, field)).decode() for data in files]


def _submit_subject(
    service: Service, who: Caller, asked: schemas.SubjectRequest, files: list[bytes], idempotency: str | None
) -> Job:
    request = {**asked.model_dump(exclude={"consent"}), "images": cleaned(service, files, "images")}
    steps = asked.steps or 0
    return service.submit(who, "subject", request, num_steps=steps, images=files, idempotency=idempotency)


@router.get("/subjects", response_model=schemas.SubjectPage, tags=["subjects"])
def list_subjects(service: Known, who: Who, limit: Limit = 20, cursor: Cursor = None) -> Any:
    """Your subjects, the newest first."""
    rows = service.records.page(SUBJECTS, who.user, limit + 1, parse_cursor(cursor))
    return page_of(rows, limit, lambda row: subject_view(service, row))


@router.get("/subjects/{subject}", response_model=schemas.SubjectView, tags=["subjects"])
def get_subject(subject: str, service: Known, who: Who) -> Any:
    """Facts of a subject; never the face."""
    return subject_view(service, _owned(service, SUBJECTS, subject, who))


@router.get("/subjects/{subject}/file", response_class=Response, tags=["subjects"])
def get_subject_file(subject: str, service: Known, who: Who) -> Response:
    """The subject file, for its owner: treat it like the images."""
    _owned(service, SUBJECTS, subject, who)
    return _file(service, who, "subjects", subject, "application/octet-stream")


@router.get(
    "/subjects/{subject}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
    tags=["subjects"],
)
def get_thumbnail(subject: str, service: Known, who: Who) -> Response:
    """The subject's reference image as the encoder sees it, for its owner."""
    _owned(service, SUBJECTS, subject, who)
    return _file(service, who, "thumbnails", subject, "image/png")


@router.delete("/subjects/{subject}", status_code=204, tags=["subjects"])
def remove_subject(subject: str, service: Known, who: Who) -> None:
    """Delete a subject, and every image and job that drew it."""
    _owned(service, SUBJECTS, subject, who)
    delete_subject(service, who.user, subject)


# -- images -----------------------------------------------------------------------------------------------------------


@router.post("/images", status_code=202, response_model=schemas.JobView, tags=["images"])
def make_images(asked: schemas.ImagesRequest, service: Known, who: Who, idempotency_key: Idempotency = None) -> Any:
    """Draw images."""
    return job_view(service, submit_images(service, who, asked, asked.subjects, asked.size, idempotency_key))


def drawing_request(service: Service, who: Caller, asked: schemas.Drawing, size: str | None) -> dict[str, Any]:
    """What the worker reads of a drawing, checked.

    Raises:
        Problem: 404 or 422.
    """
    service.check_drawing(size, asked.n, asked.num_inference_steps)
    own = asked.model_dump(include={"prompt", "negative_prompt", "n", "seed", "metadata", "preview"})
    return own | {"size": size, "sampling": asked.sampling(), "edits": service.edits(who, asked.edits)}


def submit_images(
    service: Service,
    who: Caller,
    asked: schemas.Drawing,
    subjects: list[str],
    size: str | None,
    idempotency: str | None = None,
) -> Job:
    """Accept a drawing."""
    service.check_subjects(who, subjects)
    request = drawing_request(service, who, asked, size) | {"subjects": subjects}
    steps = asked.num_inference_steps or 0
    return service.submit(who, "images", request, subjects=subjects, num_steps=steps, idempotency=idempotency)


@router.get(
    "/images/{image}", response_class=Response, responses={200: {"content": {"image/png": {}}}}, tags=["images"]
)
def get_image(image: str, service: Known, who: Who) -> Response:
    """A drawn image, as PNG."""
    _owned(service, IMAGES, image, who)
    return _file(service, who, "images", image, "image/png")


@router.delete("/images/{image}", status_code=204, tags=["images"])
def remove_image(image: str, service: Known, who: Who) -> None:
    """Delete a drawn image."""
    _owned(service, IMAGES, image, who)
    delete_image(service, who.user, image)


# -- jobs -------------------------------------------------------------------------------------------------------------


def job_of(job: str, service: Known, who: Who) -> Job:
    found = service.records.job(checked_id(job), who.user)
    if found is None:
        raise not_found()
    return found


OwnJob = Annotated[Job, Depends(job_of)]


@router.get("/jobs", response_model=schemas.JobPage, tags=["jobs"])
def list_jobs(service: Known, who: Who, limit: Limit = 20, cursor: Cursor = None) -> Any:
    """Your jobs, the newest first."""
    rows = service.records.page(JOBS, who.user, limit + 1, parse_cursor(cursor))
    return page_of(rows, limit, lambda row: job_view(service, Job(**row)))


@router.get("/jobs/{job}", response_model=schemas.JobView, tags=["jobs"])
def get_job(job: OwnJob, service: Known) -> Any:
    """A job as it stands."""
    return job_view(service, job)


@router.get("/jobs/{job}/events", response_class=EventSourceResponse, tags=["jobs"])
async def get_events(job: OwnJob, service: Known) -> AsyncIterable[ServerSentEvent]:
    """What happens to a job, until it has ended."""
    async for event in job_events(service, job):
        yield event


@router.post("/jobs/{job}/cancel", response_model=schemas.JobView, tags=["jobs"])
def cancel_job(job: OwnJob, service: Known) -> Any:
    """Cancel a job that waits at once, one that runs after its step."""
    if not service.records.cancel(job.id):
        raise Problem(409, "ended", "The job has ended already.")
    found = service.records.job(job.id)
    if found is None:
        raise not_found()
    if found.state in ENDED:
        service.queue.remove([job.id])
        service.store.remove(job.owner, "requests", job.id)
    return job_view(service, found)


# -- edits ------------------------------------------------------------------------------------------------------------


@router.get("/edits", response_model=schemas.EditPage, tags=["edits"])
def list_edits(service: Known, who: Who, limit: Limit = 20, cursor: Cursor = None) -> Any:
    """Edit cards: on the first page those of the base model, then yours, the newest first."""
    rows = service.records.page(EDITS, who.user, limit + 1, parse_cursor(cursor))
    page = page_of(rows, limit, edit_view)
    if cursor is None:
        page["data"] = [{"id": name, "object": "edit", "owned": False} for name in service.base_edits()] + page["data"]
    return page


_CARD_FORM: Any = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"card": {"type": "string", "format": "binary"}},
                    "required": ["card"],
                }
            }
        },
    }
}


@router.post("/edits", status_code=201, response_model=schemas.EditView, tags=["edits"], openapi_extra=_CARD_FORM)
async def add_edit(request: Request, service: Known, who: Who) -> Any:
    """Bring an edit card, as `promptnet learn-edit` wrote it."""
    form = await read_form(request, files=("card",), max_files=1)
    return await run_in_threadpool(_keep_edit, service, who, form.files[0])


def _keep_edit(service: Service, who: Caller, data: bytes) -> dict[str, Any]:
    from promptnet.inference.editing.card import EditCard, EditError
    from promptnet.inference.subject.fingerprint import differing

    try:
        card = EditCard.from_bytes(data)
    except EditError as error:
        raise invalid(str(error), "card") from error
    here = service.model()["fingerprint"]
    if differing(card.fingerprint, {name: here[name] for name in card.fingerprint if name in here}):
        raise Problem(409, "other-base-model", "The card was learned in another base model: learn it in this one.")
    name = new_id("edit")
    row = {"id": name, "owner": who.user, "created": time.time(), "num_steps": card.num_steps}
    row["bytes"] = service.store.put(who.user, "edits", name, data)
    try:
        service.records.add_edit(who, row, service.store.size(who.user))
    except TooMany as error:
        service.store.remove(who.user, "edits", name)
        raise too_many(f"{str(error).capitalize()}.", 3600, "too-many-bytes") from error
    except KeyIsGone as error:
        service.store.remove(who.user, "edits", name)
        raise unauthorized() from error
    return edit_view(row)


@router.delete("/edits/{edit}", status_code=204, tags=["edits"])
def remove_edit(edit: str, service: Known, who: Who) -> None:
    """Delete an edit card of yours."""
    _owned(service, EDITS, edit, who)
    delete_edit(service, who.user, edit)


# -- the caller -------------------------------------------------------------------------------------------------------


@router.delete("/me", response_model=schemas.Receipt, tags=["you"])
def remove_me(service: Known, who: Who) -> Any:
    """Delete everything of yours, at once and for good; keep the receipt."""
    return delete_user(service, who)


@router.get(
    "/me/export", response_class=StreamingResponse, responses={200: {"content": {"application/zip": {}}}}, tags=["you"]
)
def export_me(service: Known, who: Who) -> StreamingResponse:
    """Everything of yours, as one zip."""
    headers = {"Content-Disposition": 'attachment; filename="promptnet-export.zip"'}
    return StreamingResponse(archive(service, who), media_type="application/zip", headers=headers)


def _owned(service: Service, table: Any, name: str, who: Caller) -> Any:
    row = service.records.owned(table, checked_id(name), who.user)
    if row is None:
        raise not_found()
    return row


def _file(service: Service, who: Caller, kind: str, name: str, media_type: str) -> Response:
    try:
        return Response(service.store.get(who.user, kind, name), media_type=media_type)
    except Missing as error:
        raise not_found() from error
