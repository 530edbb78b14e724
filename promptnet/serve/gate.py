"""The first thing that a request meets: who calls, how often, with how much, before a byte of the body is read."""

import asyncio
import time
from typing import Any

from starlette.concurrency import run_in_threadpool

from promptnet.serve import metrics
from promptnet.serve.keys import Caller
from promptnet.serve.limits import RateLimits
from promptnet.serve.logs import log, log_error, since_ms
from promptnet.serve.page import PATHS
from promptnet.serve.problems import Problem, storage_problem, too_many, unauthorized
from promptnet.serve.service import Service
from promptnet.serve.settings import Settings

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"}) | PATHS
ADMIN = ("/v1/admin/",)
MULTIPART = frozenset({"/v1/subjects", "/v1/images/edits", "/v1/edits"})
_SAFE = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: what is behind it.
        service: whose keys say who may pass.
        settings: of the service.
    """

    def __init__(self, app: Any, service: Service, settings: Settings) -> None:
        self.app, self.service, self.settings, self.rates = app, service, settings, RateLimits()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start_s, sent = time.perf_counter(), {"status": 0}
        answer = _answering(send, sent)
        try:
            await self._pass(scope, receive, answer)
        except Problem as problem:
            metrics.count_refusal(problem.code)
            await self._answer(problem, sent, scope, receive, answer)
        except Exception as error:
            log_error("request failed", error)
            problem = Problem(500, "internal", "Something went wrong here; it was logged without your data.")
            await self._answer(problem, sent, scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", None)  # the pattern: never what was in its place
            log("request", route=route, method=_method(scope), status=sent["status"], ms=since_ms(start_s))

    async def _answer(self, problem: Problem, sent: dict[str, int], scope: Any, receive: Any, send: Any) -> None:
        if not sent["status"]:
            await problem.response()(scope, receive, send)

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] not in OPEN:
            caller = await self._caller(scope)
            scope.setdefault("state", {})["caller"] = caller
            if wait_s := self.rates.seconds_to_wait(caller):
                raise too_many(f"Your key allows {caller.limits.requests_per_minute} requests a minute.", wait_s)
            if scope["path"].startswith(ADMIN) and caller.scope != "admin":
                raise Problem(403, "forbidden", "This needs a key of the scope admin.")
            self._check_body(scope)
        await self.app(scope, _Body(receive, self.settings), send)

    async def _caller(self, scope: Any) -> Caller:
        scheme, _, secret = _header(scope, b"authorization").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise unauthorized()
        try:
            caller = await run_in_threadpool(self.service.keys.find, secret.strip())
        except Exception as error:
            log_error("database", error)
            raise storage_problem() from error
        if caller is None:
            raise unauthorized()
        return caller

    def _check_body(self, scope: Any) -> None:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > self.settings.max_upload_bytes:
            raise _too_large(self.settings)
        kind = _header(scope, b"content-type").partition(";")[0].strip().lower()
        wanted = "multipart/form-data" if scope["path"].rstrip("/") in MULTIPART else "application/json"
        has_body = (length.isdigit() and int(length) > 0) or _header(scope, b"transfer-encoding")
        if has_body and kind != wanted:
            raise Problem(415, "content-type", f"Send this as {wanted}.")


class _Body:
    """`receive` of ASGI, which refuses bodies that are too large or do not come."""

    def __init__(self, receive: Any, settings: Settings) -> None:
        self.receive, self.settings, self.num_bytes, self.whole = receive, settings, 0, False
        self.deadline_s = time.monotonic() + settings.body_s

    async def __call__(self) -> Any:
        if self.whole:
            return await self.receive()
        try:
            left_s = max(0.0, self.deadline_s - time.monotonic())
            message = await asyncio.wait_for(self.receive(), left_s)
        except TimeoutError as error:
            raise Problem(408, "slow-body", f"The body did not come within {self.settings.body_s:g} s.") from error
        self.num_bytes += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self.num_bytes > self.settings.max_upload_bytes:
            raise _too_large(self.settings)
        return message


def _too_large(settings: Settings) -> Problem:
    return Problem(413, "too-large", f"A request has at most {settings.max_upload_bytes} bytes.")


def _header(scope: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _method(scope: Any) -> str:
    known = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _answering(send: Any, sent: dict[str, int]) -> Any:
    """`send` of ASGI, which notes the status and adds what every answer says to browsers and caches."""

    async def answer(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent["status"] = message["status"]
            there = {name.lower() for name, _ in message.get("headers", [])}
            added = [(name, value) for name, value in _SAFE.items() if name not in there]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return answer
