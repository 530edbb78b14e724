"""Mutated uploads and requests: refused by name, never a 500, and memory stays bounded."""

import io
import random
import resource
import struct
import zlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image

from promptnet.serve.problems import Problem
from promptnet.serve.uploads import clean_image
from tests.serve.conftest import Running, User, picture

NUM_MUTATED = 150
_NO_CHECKS: Any = list(HealthCheck)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bombs() -> dict[str, tuple[bytes, int]]:
    """Files, and how each is refused."""
    text = zlib.compress(b"a" * 60_000_000)
    with_text = picture()[:33] + chunk(b"zTXt", b"Comment\0\0" + text) + picture()[33:]
    return {
        "pixels": (png_of(30_000, 30_000, b"\0" * 1000), 413),
        "short": (png_of(2000, 2000, b"\0" * 10), 422),
        "text": (with_text, 422),
        "empty": (b"", 422),
        "tiny": (png_of(1, 1, b"\0" * 4), 422),
        "script": (b"<script>alert(1)</script>", 415),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415),
        "pdf": (b"%PDF-1.7 " + picture(), 415),
        "zip": (b"PK\x03\x04" + b"\0" * 100, 415),
        "tiff": (b"II*\0" + b"\0" * 100, 415),
    }


def upload(user: User, data: bytes, name: str = "a.png") -> Any:
    return user.call("POST", "/v1/subjects", data={"consent": "true", "tune": "false"}, files={"images": (name, data)})


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_bombs_and_other_files_are_refused(user: User, kind: str) -> None:
    data, status = bombs()[kind]
    answer = upload(user, data)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_polyglot_leaves_its_second_half_outside(running: Running, user: User) -> None:
    hidden = b"PK\x03\x04<script>hidden</script>"
    assert b"hidden" not in clean_image(picture() + hidden, 10**7)
    job = user.ended(upload(user, picture() + hidden).json())
    assert job["status"] == "succeeded"


@pytest.mark.parametrize(
    "name", ["../../keys/master.key", "/etc/passwd", "a\0b.png", "CON", "x" * 4000, "\u202egnp.exe"]
)
def test_names_of_files_lead_nowhere(running: Running, user: User, name: str) -> None:
    before = {path for path in running.settings.data.rglob("*") if "users" not in path.parts}
    job = upload(user, picture(), name).json()
    assert user.ended(job)["status"] == "succeeded"
    after = {path for path in running.settings.data.rglob("*") if "users" not in path.parts}
    assert {path.name for path in after - before} <= {
        f"{user.caller.user}.key",
        "service.sqlite-shm",
        "service.sqlite-wal",
    }


def mutated(data: bytes, draws: random.Random) -> bytes:
    """A few bytes changed, cut out, repeated or put elsewhere."""
    found = bytearray(data)
    for _ in range(draws.randint(1, 6)):
        place = draws.randrange(len(found))
        what = draws.randrange(4)
        if what == 0:
            found[place] ^= 1 << draws.randrange(8)
        elif what == 1:
            del found[place : place + draws.randint(1, 40)]
        elif what == 2:
            found[place:place] = found[place : place + draws.randint(1, 40)]
        else:
            found[place : place + 4] = draws.randbytes(4)
        if len(found) < 2:
            break
    return bytes(found)


def test_mutated_uploads_are_no_internal_error_and_memory_is_bounded(running: Running, user: User) -> None:
    draws = random.Random(0)
    originals = [picture()]
    for kind in ("JPEG", "WEBP", "GIF", "BMP"):
        out = io.BytesIO()
        Image.open(io.BytesIO(picture())).save(out, kind)
        originals.append(out.getvalue())
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = set()
    for _ in range(NUM_MUTATED):
        data = mutated(draws.choice(originals), draws)
        statuses.add(user.call("POST", "/v1/edits", files={"card": data}).status_code)
        try:
            clean_image(data, running.settings.max_pixels)
        except Problem as problem:
            statuses.add(problem.status)
    assert {415, 422} <= statuses <= {413, 415, 422}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 300_000


@pytest.mark.parametrize("boundary", ["x", "y" * 100])
def test_mutated_forms_are_no_internal_error(user: User, boundary: str) -> None:
    draws = random.Random(1)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    form = head.encode() + picture() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    for _ in range(40):
        answer = user.call("POST", "/v1/subjects", content=mutated(form, draws), headers=headers)
        assert 400 <= answer.status_code < 500


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"prompt": NaN}', b"\xff\xfe", b'{"n": 1e999}', b"null"])
def test_odd_json_is_refused(user: User, body: bytes) -> None:
    answer = user.call("POST", "/v1/images", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize("cursor", ["x", "bnVsbA==", "WzEsIDJd", "e30=", "\u00e9", "W" * 200])
def test_odd_cursors_are_refused(user: User, cursor: str) -> None:
    assert user.call("GET", "/v1/jobs", params={"cursor": cursor}).status_code == 422


def test_what_the_openapi_allows_is_no_internal_error(running: Running, fresh: Any) -> None:
    """Schemathesis calls the routes with what their schemas allow; generations and events would wait for drawings."""
    user = fresh(open_jobs=1, requests_per_minute=100_000)
    schema = schemathesis.openapi.from_asgi("/openapi.json", running.app)
    statuses: dict[str, set[int]] = {}
    results: Any = schema.exclude(path_regex="(/events|/generations|/me)$").get_all_operations()
    for result in results:
        check_operation(result.ok(), user, statuses)
    for job in user.call("GET", "/v1/jobs").json()["data"]:
        user.call("POST", job["urls"].get("cancel", job["urls"]["get"]))
    assert len(statuses) > 12
    assert {200, 404, 422} <= set().union(*statuses.values())


def check_operation(operation: Any, user: User, statuses: dict[str, set[int]]) -> None:
    """Call one route a few times."""

    @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=_NO_CHECKS, database=None)
    @given(case=operation.as_strategy())
    def call(case: Any) -> None:
        answer = case.call(headers=user.headers)
        statuses.setdefault(case.operation.path, set()).add(answer.status_code)
        assert answer.status_code < 500, (case.operation.path, answer.text)

    call()
