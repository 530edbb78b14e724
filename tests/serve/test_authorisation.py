"""No route is open: without a key, with a wrong or a revoked one, and for what is somebody else's."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from tests.serve.conftest import Running, User, edit_card, picture

OPEN = {"/healthz", "/readyz", "/openapi.json", "/", "/web/session", "/web/{name}"}
NOBODYS = "0" * 24
# Routes with an id in them, and which of another user's ids goes there.
OF_SOMEBODY = {
    ("GET", "/v1/subjects/{subject}"),
    ("GET", "/v1/subjects/{subject}/file"),
    ("GET", "/v1/subjects/{subject}/thumbnail"),
    ("DELETE", "/v1/subjects/{subject}"),
    ("GET", "/v1/images/{image}"),
    ("DELETE", "/v1/images/{image}"),
    ("GET", "/v1/jobs/{job}"),
    ("GET", "/v1/jobs/{job}/events"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("DELETE", "/v1/edits/{edit}"),
}
OF_NOBODY = {
    ("GET", "/v1/models"),
    ("GET", "/v1/consent"),
    ("GET", "/v1/admin/workers"),
    ("GET", "/v1/subjects"),
    ("POST", "/v1/subjects"),
    ("POST", "/v1/images"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/edits"),
    ("POST", "/v1/edits"),
    ("DELETE", "/v1/me"),
    ("GET", "/v1/me/export"),
}


def routes(running: Running) -> Iterator[tuple[str, str]]:
    """Return what the application answers, whether its schema tells of it or not."""
    for route in iter_route_contexts(running.app.app.routes):
        yield from ((method, str(route.path)) for method in set(route.methods or ()) - {"HEAD"})


def test_the_table_holds_every_route(running: Running) -> None:
    assert {route for route in routes(running) if route[1] not in OPEN} == OF_SOMEBODY | OF_NOBODY
    assert {path for _, path in routes(running)} >= OPEN
    told = {(method.upper(), path) for path, methods in schema_of(running).items() for method in methods}
    assert told >= OF_SOMEBODY | OF_NOBODY


def schema_of(running: Running) -> dict[str, Any]:
    return running.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(("method", "path"), sorted(OF_SOMEBODY | OF_NOBODY))
def test_a_valid_key_is_needed(running: Running, method: str, path: str) -> None:
    revoked, caller = running.service.keys.add()
    running.service.keys.revoke(caller.key)
    path = re.sub(r"{(\w+)}", NOBODYS, path)
    for authorization in (None, "Bearer ", "Bearer pn_wrong", f"Bearer {revoked}", f"Basic {revoked}", revoked):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = running.client.request(method, path, headers=headers)
        assert answer.status_code == 401, (authorization, answer.text)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"


def test_unknown_paths_are_not_open_either(running: Running, user: User) -> None:
    assert running.client.get("/v1/nothing").status_code == 401
    assert running.client.get("/index.html").status_code == 401
    assert user.call("GET", "/v1/nothing").status_code == 404
    assert user.call("GET", "/docs").status_code == 404
    assert user.call("PUT", "/v1/subjects").status_code == 405


@pytest.fixture(scope="module")
def things(running: Running) -> dict[str, str]:
    """One of each, of somebody."""
    owner = running.user()
    name = owner.subject()
    job = owner.draw("a photo of S*", subjects=[name])
    edit = owner.call("POST", "/v1/edits", files={"card": edit_card(running.worker.pipe)}).json()["id"]
    return {"subject": name, "job": job["id"], "image": job["output"]["images"][0]["id"], "edit": edit}


@pytest.mark.parametrize(("method", "path"), sorted(OF_SOMEBODY))
def test_another_users_things_do_not_exist(user: User, things: dict[str, str], method: str, path: str) -> None:
    kind = re.findall(r"{(\w+)}", path)[0]
    theirs = user.call(method, path.format(**things))
    nobodys = user.call(method, path.format(**{kind: f"{things[kind].partition('_')[0]}_{NOBODYS}"}))
    odd = user.call(method, path.format(**{kind: "..%2F..%2Fkeys"}))
    assert theirs.status_code == nobodys.status_code == odd.status_code == 404
    assert theirs.json() == nobodys.json()


@pytest.mark.parametrize("asked", [{"subjects": ["{subject}"]}, {"edits": [{"edit": "{edit}"}]}])
def test_nor_can_they_be_used(user: User, things: dict[str, str], asked: dict[str, Any]) -> None:
    text = "S*" if "subjects" in asked else "a person"
    text_of = json.dumps(asked).replace("{subject}", things["subject"]).replace("{edit}", things["edit"])
    filled = json.loads(text_of)
    assert user.call("POST", "/v1/images", json={"prompt": text, **filled}).status_code == 404
    if "subjects" in asked:
        extra = {"prompt": text, "subject": things["subject"]}
        assert user.call("POST", "/v1/images/generations", json=extra).status_code == 404


def test_lists_hold_ones_own_alone(user: User, things: dict[str, str]) -> None:
    for path in ("/v1/subjects", "/v1/jobs"):
        assert user.call("GET", path).json()["data"] == []
    assert things["edit"] not in user.call("GET", "/v1/edits").text


def test_admins_alone_see_the_workers(running: Running, fresh: Callable[..., User]) -> None:
    user = fresh()
    assert user.call("GET", "/v1/admin/workers").status_code == 403
    secret, _ = running.service.keys.add(scope="admin")
    answer = running.client.get("/v1/admin/workers", headers={"Authorization": f"Bearer {secret}"})
    assert answer.json()["workers"][0]["slot"] == "0"
    assert user.caller.user not in answer.text


def test_a_key_is_shown_once_and_kept_as_a_hash(running: Running) -> None:
    from promptnet.serve.database import every_text

    secret, caller = running.service.keys.add()
    assert running.service.keys.find(secret) == caller
    assert not [text for _, text in every_text(running.service.engine) if secret in text]
    assert secret not in str(running.service.keys.listed())


def test_a_key_of_a_user_that_there_is_not_cannot_be_made(running: Running) -> None:
    with pytest.raises(ValueError, match="user 'nobody' does not exist"):
        running.service.keys.add(user="nobody")
    with pytest.raises(ValueError, match="scope 'root' must be one of user, admin"):
        running.service.keys.add(scope="root")
    with pytest.raises(ValueError, match="0 valid keys are called 'nothing'"):
        running.service.keys.revoke("nothing")


def test_pictures_reach_nobody_without_a_key(running: Running) -> None:
    files = {"images": ("a.png", picture())}
    assert running.client.post("/v1/subjects", data={"consent": "true"}, files=files).status_code == 401
