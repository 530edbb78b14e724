"""The door of `promptnet ui`: this machine, one person, no key to type.

    the opened address, http://127.0.0.1:PORT/?token=...  ->  a cookie (HttpOnly, SameSite=Strict)  ->  the one key

Three things keep other pages out that run in the same browser: the Host must be this machine's by name (a foreign name
that resolves here is refused), Origin and Sec-Fetch-Site must be this page's own, and the cookie is never sent along
with what other sites start. Ports do not keep cookies apart, so the cookie's name holds the port.
"""

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse

from promptnet.serve.page import PATHS
from promptnet.serve.problems import Problem

HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HELD = b"authorization"


class LocalDoor:
    """ASGI middleware before the gate of a service that one person has to themselves.

    Args:
        app: the service.
        secret: the key that whoever has the cookie calls with.
        port: that is listened on.
    """

    def __init__(self, app: Any, secret: str, port: int) -> None:
        self.app, self.secret = app, secret
        self.token, self.cookie = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self.cookie_name = f"promptnet-{port}"
        self.hosts = {f"{host}:{port}" for host in HOSTS} | (set(HOSTS) if port == 80 else set())
        self.address = f"http://127.0.0.1:{port}/?token={self.token}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_where_from(scope, headers)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if scope["path"] == "/" and self._has_token(scope):
            await self._let_in()(scope, receive, send)
            return
        known = self._has_cookie(headers)
        scope["promptnet.local"] = known
        if known:
            others = [(name, value) for name, value in scope["headers"] if name != _HELD]
            scope["headers"] = [*others, (_HELD, f"Bearer {self.secret}".encode())]
        await self.app(scope, receive, send)

    def _check_where_from(self, scope: Any, headers: dict[bytes, str]) -> None:
        """Refuse what another name, page or site asks.

        Raises:
            Problem: 403.
        """
        if headers.get(b"host", "").lower() not in self.hosts:
            raise Problem(403, "foreign-host", "This service answers on this machine alone, by its own address.")
        origin = headers.get(b"origin")
        own = {f"http://{host}" for host in self.hosts}
        if origin is not None and origin.lower() not in own:
            raise Problem(403, "foreign-origin", "Another page asks; only the service's own page may.")
        site = headers.get(b"sec-fetch-site", "none")
        if site not in ("none", "same-origin") and scope["path"] not in PATHS:
            raise Problem(403, "foreign-origin", "Another site asks; only the service's own page may.")

    def _has_token(self, scope: Any) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _has_cookie(self, headers: dict[bytes, str]) -> bool:
        try:
            morsel = SimpleCookie(headers.get(b"cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self.cookie.encode())

    def _let_in(self) -> RedirectResponse:
        """To the page without the token in its address."""
        answer = RedirectResponse("/", 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        answer.set_cookie(self.cookie_name, self.cookie, httponly=True, samesite="strict", path="/")
        return answer
