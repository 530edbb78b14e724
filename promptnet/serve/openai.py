"""OpenAI's images API over the same jobs, for clients that know no other: they wait, and get images as base64."""

import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from promptnet.serve import schemas
from promptnet.serve.api import (
    ERRORS,
    Idempotency,
    Known,
    Who,
    check_consent,
    cleaned,
    drawing_request,
    submit_images,
)
from promptnet.serve.deletion import delete_jobs
from promptnet.serve.events import wait_for_end
from promptnet.serve.forms import form_schema, read_form
from promptnet.serve.keys import Caller
from promptnet.serve.problems import Problem, not_found, storage_problem
from promptnet.serve.records import Job
from promptnet.serve.service import Service
from promptnet.serve.views import job_view

router = APIRouter(prefix="/v1/images", responses=ERRORS, tags=["openai"])
_STATUS = {"invalid": 422, "foreign": 422, "gone": 404}


@router.post("/generations")
async def generate(
    asked: schemas.GenerationsRequest, service: Known, who: Who, idempotency_key: Idempotency = None
) -> dict[str, Any]:
    """Draw images and wait for them; `subject` and all of `SamplingConfig` go into `extra_body`."""
    size = None if asked.size == "auto" else asked.size
    job = await run_in_threadpool(submit_images, service, who, asked, asked.subjects, size, idempotency_key)
    return await _answer(service, job)


@router.post("/edits", openapi_extra=form_schema(schemas.EditsRequest, "image"))
async def edit(request: Request, service: Known, who: Who, idempotency_key: Idempotency = None) -> dict[str, Any]:
    """Draw the person in an image as the prompt says, and forget both: `consent` goes into `extra_body`."""
    form = await read_form(request, files=("image", "image[]"), max_files=service.settings.max_references)
    asked = form.checked(schemas.EditsRequest)
    check_consent(asked.consent)
    job = await run_in_threadpool(_submit_edit, service, who, asked, form.files, idempotency_key)
    answer = await _answer(service, job)
    await run_in_threadpool(delete_jobs, service, who.user, [job.id])
    return answer


def _submit_edit(
    service: Service, who: Caller, asked: schemas.EditsRequest, files: list[bytes], idempotency: str | None
) -> Job:
    size = None if asked.size == "auto" else asked.size
    request = drawing_request(service, who, asked, size)
    request |= {"class_word": asked.class_word, "allow_foreign": asked.allow_foreign}
    request |= {"images": cleaned(service, files, "image")}
    steps = asked.num_inference_steps or 0
    return service.submit(who, "edit", request, num_steps=steps, images=files, idempotency=idempotency)


async def _answer(service: Service, job: Job) -> dict[str, Any]:
    ended = await wait_for_end(service, job)
    if ended is None:
        raise not_found()
    view = await run_in_threadpool(job_view, service, ended)
    if ended.state == "canceled":
        raise Problem(409, "canceled", "The job was canceled.")
    if ended.state == "failed":
        raise _problem_of(view["error"])
    return {"created": int(ended.ended or 0), "data": await run_in_threadpool(_images, service, ended, view)}


def _problem_of(error: dict[str, str]) -> Problem:
    if error["code"] == "storage":
        return storage_problem()
    return Problem(_STATUS.get(error["code"], 500), error["code"], error["message"])


def _images(service: Service, job: Job, view: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for image in view["output"]["images"]:
        data = service.store.get(job.owner, "images", image["id"])
        found.append({"b64_json": base64.b64encode(data).decode(), "seed": image["seed"]})
    return found
