"""`promptnet ui`: one person, one machine, no key, and nobody else."""

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from promptnet.serve import run as run_module
from promptnet.serve.local import LocalDoor
from promptnet.serve.run import free_port, local_secret, run_for_one
from promptnet.serve.settings import Settings
from tests.serve.conftest import TINY, Running, User

PORT = 8123
HOME = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def door(running: Running, user: User) -> LocalDoor:
    return LocalDoor(running.app, user.secret, PORT)


@pytest.fixture
def stranger(door: LocalDoor) -> TestClient:
    return TestClient(door, base_url=HOME, follow_redirects=False)


@pytest.fixture
def owner(door: LocalDoor) -> TestClient:
    client = TestClient(door, base_url=HOME)
    assert client.get(door.address).status_code == 200
    return client


def test_the_opened_address_becomes_a_cookie(door: LocalDoor, stranger: TestClient) -> None:
    answer = stranger.get(door.address)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert f"promptnet-{PORT}=" in cookie
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert door.token not in cookie
    assert stranger.get("/v1/models").status_code == 200
    assert stranger.get("/web/session").json() == {"ready": True, "local": True, "open": True}


def test_without_the_token_there_is_the_page_and_nothing_else(door: LocalDoor, stranger: TestClient) -> None:
    for address in ("/", "/?token=", "/?token=wrong", f"/?token={door.cookie}", f"/v1/models?token={door.token}"):
        answer = stranger.get(address)
        assert "set-cookie" not in answer.headers, address
        assert answer.status_code == (401 if "models" in address else 200)
    assert stranger.get("/web/session").json()["open"] is False
    for cookie in ("wrong", door.token, "ü", ""):
        headers = {"Cookie": f"promptnet-{PORT}={cookie}".encode("latin-1")}
        assert stranger.get("/v1/models", headers=headers).status_code == 401, cookie  # type: ignore[arg-type]


def test_every_start_has_another_token(running: Running) -> None:
    doors = [LocalDoor(running.app, "x", PORT) for _ in range(2)]
    assert len({door.token for door in doors} | {door.cookie for door in doors}) == 4


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", "localhost:1", ""]
)
@pytest.mark.parametrize("path", ["/", "/v1/models", "/healthz", "/web/app.js"])
def test_a_foreign_host_is_refused(owner: TestClient, host: str, path: str) -> None:
    answer = owner.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:promptnet:foreign-host"


def test_a_foreign_host_does_not_get_a_cookie_for_the_token(door: LocalDoor, stranger: TestClient) -> None:
    answer = stranger.get(door.address, headers={"Host": f"evil.example:{PORT}"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}", ""]
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/v1/models"), ("DELETE", "/v1/me"), ("OPTIONS", "/v1/me")]
)
def test_a_foreign_origin_is_refused(owner: TestClient, origin: str, method: str, path: str) -> None:
    answer = owner.request(method, path, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:promptnet:foreign-origin"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_starts_is_refused_even_with_the_cookie(owner: TestClient, site: str) -> None:
    headers = {"Sec-Fetch-Site": site}
    assert owner.get("/v1/jobs", headers=headers).status_code == 403
    assert owner.get("/", headers=headers).status_code == 200  # a link to the page


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_names_of_this_machine_are_its_own(door: LocalDoor, host: str) -> None:
    client = TestClient(door, base_url=f"http://{host}:{PORT}")
    headers = {"Origin": f"http://{host}:{PORT}", "Sec-Fetch-Site": "same-origin"}
    assert client.get(f"/?token={door.token}", headers=headers).status_code == 200


def test_the_cookie_counts_and_no_header_beside_it(owner: TestClient, running: Running) -> None:
    other, _ = running.service.keys.add(scope="admin")
    assert owner.get("/v1/admin/workers", headers={"Authorization": f"Bearer {other}"}).status_code == 403


def test_the_one_key_is_kept_privately_and_made_anew_where_it_was_revoked(running: Running) -> None:
    secret = local_secret(running.service)
    assert local_secret(running.service) == secret
    path = running.settings.data / "keys" / "local-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    caller = running.service.keys.find(secret)
    assert caller is not None
    running.service.keys.revoke(caller.key)
    assert local_secret(running.service) != secret


@pytest.mark.parametrize("browser", [True, False])
def test_the_page_is_opened_once_the_server_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], browser: bool
) -> None:
    opened: list[str] = []
    doors: list[Any] = []
    monkeypatch.setattr(run_module.webbrowser, "open", lambda address: opened.append(address) or True)
    monkeypatch.setattr(run_module, "_answer", lambda app, _settings, started: (doors.append(app), started()))
    run_for_one(Settings(base=str(TINY), data=tmp_path / "data", port=PORT, metrics_port=0), browser=browser)
    doors[0].app.service.close()
    assert opened == ([doors[0].address] if browser else [])
    assert doors[0].address in capsys.readouterr().out


def test_a_port_that_is_taken_is_replaced() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert free_port(number) != number


def test_the_command_takes_the_embedded_model_on_the_loopback_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptnet import cli

    seen: list[Any] = []
    monkeypatch.setattr(
        run_module,
        "run_for_one",
        lambda settings, browser: seen.append(SimpleNamespace(**vars(settings), browser=browser)),
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ui", "--no-browser", "--threads", "1"]) == 0
    (settings,) = seen
    assert settings.host == "127.0.0.1"
    assert Path(settings.base) == TINY
    assert settings.metrics_port == 0
    assert settings.browser is False
    assert settings.data == tmp_path / "outputs" / "ui"
