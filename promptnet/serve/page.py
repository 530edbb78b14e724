"""The web page: static files of this package, answered without a key; what they ask of /v1 needs one.

The page loads nothing from elsewhere and runs no script but its own modules, as they lie here: its policy lets the
browser refuse anything else, also what a drawn image or a prompt might try to smuggle in.
"""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from promptnet.serve.heartbeat import fresh_workers
from promptnet.serve.problems import not_found

FOLDER = Path(__file__).parent / "web"
MODULES = ("app", "data", "dom", "form", "problems", "results", "service", "subjects", "words")
TYPES = {
    "index.html": "text/html; charset=utf-8",
    **{f"{module}.js": "text/javascript; charset=utf-8" for module in MODULES},
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "example.png": "image/png",
}
POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
PATHS = frozenset({"/", "/web/session", *(f"/web/{name}" for name in TYPES if name != "index.html")})
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again, so that an upgrade is seen
}
router = APIRouter(include_in_schema=False)


def _answer(name: str) -> Response:
    return Response((FOLDER / name).read_bytes(), media_type=TYPES[name], headers=_HEADERS)


@router.get("/")
def index() -> Response:
    """The page."""
    return _answer("index.html")


@router.get("/web/session")
def session(request: Request) -> dict[str, Any]:
    """What the page asks first: whether a model is ready, and for `promptnet ui` whether this browser was let in."""
    local = request.scope.get("promptnet.local")
    ready = bool(fresh_workers(request.app.state.service.engine))
    return {"ready": ready, "local": local is not None, "open": bool(local)}


@router.get("/web/{name}")
def file(name: str) -> Response:
    """A file of the page."""
    if name not in TYPES or name == "index.html":
        raise not_found()
    return _answer(name)
