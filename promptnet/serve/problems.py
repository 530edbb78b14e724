"""Errors in one form: application/problem+json (RFC 9457), with the member that OpenAI's clients read beside it."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

CONTENT_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        code: a word for programs.
        detail: a sentence for people; it is for the caller alone and never logged.
        headers: further ones.
        errors: single faults, by field.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.errors = dict(headers or {}), errors

    def response(self) -> Response:
        body: dict[str, Any] = {
            "type": f"urn:promptnet:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "error": {"message": self.detail, "type": self.code, "code": self.code, "param": None},
        }
        if self.errors:
            body["errors"] = self.errors
        return Response(json.dumps(body), self.status, self.headers, media_type=CONTENT_TYPE)


def not_found() -> Problem:
    """The same for what does not exist and for what is somebody else's."""
    return Problem(404, "not-found", "There is nothing of yours under this id.")


def unauthorized() -> Problem:
    return Problem(
        401,
        "unauthorized",
        "Send a valid key: Authorization: Bearer KEY.",
        {"WWW-Authenticate": "Bearer"},
    )


def too_many(detail: str, retry_after_s: int, code: str = "too-many-requests") -> Problem:
    return Problem(429, code, detail, {"Retry-After": str(max(1, retry_after_s))})


def storage_problem() -> Problem:
    """The disk is full, or the database does not answer: nothing was accepted."""
    return Problem(
        503, "storage", "The service cannot store anything right now; nothing was accepted.", {"Retry-After": "10"}
    )


def invalid(detail: str, field: str = "body") -> Problem:
    return Problem(422, "invalid", detail, errors=[{"field": field, "message": detail}])
