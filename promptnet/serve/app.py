"""The application: routes, errors in one form, and the gate around it all."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from promptnet.serve import api, openai, page
from promptnet.serve.forms import validation_problem
from promptnet.serve.gate import Gate
from promptnet.serve.logs import log_error
from promptnet.serve.metrics import count_refusal
from promptnet.serve.problems import Problem, not_found, storage_problem
from promptnet.serve.service import Service
from promptnet.serve.settings import Settings
from promptnet.serve.sweeper import Sweeper

_CODES = {405: "method-not-allowed", 400: "bad-request"}


def create_app(settings: Settings, *, supervisor: Any = None) -> Gate:
    """Make the ASGI application of a service; its workers are others' business, or a supervisor's.

    Args:
        settings: of the service.
        supervisor: started and stopped with the application, if there is one.
    """
    from promptnet import __version__

    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sweeper = Sweeper(service)
        sweeper.start()
        if supervisor is not None:
            supervisor.start()
        yield
        if supervisor is not None:
            supervisor.stop()
        sweeper.stop()
        service.close()

    app = FastAPI(
        title="promptnet",
        version=__version__,
        summary="Customise a text-to-image model to a person, and draw them.",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(page.router)
    app.include_router(api.open_router)
    app.include_router(openai.router)
    app.include_router(api.router)
    for kind in (Problem, HTTPException, RequestValidationError, SQLAlchemyError, OSError, Exception):
        app.add_exception_handler(kind, _answer)
    return Gate(app, service, settings)


def _answer(_request: Request, error: Exception) -> Response:
    problem = _problem_of(error)
    count_refusal(problem.code)
    return problem.response()


def _problem_of(error: BaseException) -> Problem:
    chained: BaseException | None = error
    while chained is not None:  # what reads a body wraps what it is told while it reads
        if isinstance(chained, Problem):
            return chained
        chained = chained.__cause__ or chained.__context__
    if isinstance(error, RequestValidationError):
        return validation_problem(error.errors())
    if isinstance(error, HTTPException):
        return not_found() if error.status_code == 404 else _of_status(error)
    if isinstance(error, (SQLAlchemyError, OSError)):
        log_error("storage", error)
        return storage_problem()
    log_error("request failed", error)
    return Problem(500, "internal", "Something went wrong here; it was logged without your data.")


def _of_status(error: HTTPException) -> Problem:
    code = _CODES.get(error.status_code, "refused")
    return Problem(error.status_code, code, str(error.detail), dict(error.headers or {}))


logging.getLogger("python_multipart").setLevel(logging.ERROR)
