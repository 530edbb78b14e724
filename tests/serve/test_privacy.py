"""What a user brings is nowhere in the clear, and after deletion nowhere at all; backups die with the key."""

import io
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from PIL.PngImagePlugin import PngInfo

from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.serve import logs
from promptnet.serve.backup import back_up
from promptnet.serve.database import CONSENTS, DELETIONS, JOBS, every_text, open_database
from promptnet.serve.deletion import find_traces
from promptnet.serve.store import Missing, Store
from promptnet.serve.sweeper import remove_orphans, sweep
from promptnet.serve.vault import Vault, VaultError
from tests.serve.conftest import Running, User
from tests.serve.test_authorisation import OF_SOMEBODY

MARKER = "xylophonemarker"


def marked_picture() -> bytes:
    """A picture with the marker in its metadata and behind its end."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text("Comment", MARKER)
    render_avatar(sample_avatar(1, 7, "validation"), 64).save(out, "PNG", pnginfo=info)
    return out.getvalue() + MARKER.encode()


def leave_markers(user: User) -> tuple[str, dict[str, Any]]:
    """A subject and a job with the marker in every input."""
    files = {"images": (f"{MARKER}.png", marked_picture(), "image/png")}
    fields = {"consent": "true", "tune": "false", "class_word": MARKER}
    name = user.ended(user.call("POST", "/v1/subjects", data=fields, files=files).json())["output"]["subject"]
    edits = {"prompt": f"{MARKER} S*", "consent": "true", "num_inference_steps": "1"}
    assert user.call("POST", "/v1/images/edits", data=edits, files={"image": files["images"]}).status_code == 200
    given = {"negative_prompt": MARKER, "metadata": True, "preview": True}
    job = user.draw(f"a photo of S* {MARKER}", subjects=[name], **given)
    user.draw(f"{MARKER} " * 50 + "S*", subjects=[name])  # fails, with words that quote the prompt
    user.call("POST", "/v1/images", json={"prompt": MARKER, MARKER: 1}, headers={"Idempotency-Key": MARKER})
    return name, job


def test_a_marker_is_nowhere_in_the_clear_and_after_deletion_nowhere(
    running: Running, user: User, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logs.set_up()
    try:
        name, job = leave_markers(user)
        assert MARKER.encode() in user.call("GET", job["output"]["images"][0]["url"]).content  # it was asked for
        ids = {"subject": name, "job": job["id"], "image": job["output"]["images"][0]["id"]}
        assert MARKER.encode() not in user.call("GET", f"/v1/subjects/{name}/thumbnail").content
        assert find_traces(running.settings, running.service.engine, [MARKER]) == []
        back_up(running.settings, tmp_path / "backup")
        receipt = user.call("DELETE", "/v1/me").json()
    finally:
        logging.basicConfig(force=True)
    said = capfd.readouterr()
    assert '"event": "job done"' in said.err
    assert MARKER not in said.err + said.out
    assert {user.caller.user, name, job["id"]} <= set(receipt["ids"])
    assert receipt["counts"]["subjects"] == 1
    assert find_traces(running.settings, running.service.engine, [MARKER, *receipt["ids"]]) == []
    assert name not in running.worker.subjects.names() or not running.worker.subjects.keep_only([])
    with running.service.engine.connect() as connection:
        rows = connection.execute(sa.select(DELETIONS).where(DELETIONS.c.id == receipt["id"])).mappings().all()
        consents = connection.execute(sa.select(CONSENTS).where(CONSENTS.c.key == user.caller.key)).mappings().all()
    assert set(rows[0]) == {"id", "key", "time", "mark"}
    assert [(row["owner"], row["job"], row["version"]) for row in consents] == [(None, None, "2026-11")] * len(consents)
    assert len(consents) >= 1
    check_backup(running, tmp_path / "backup", receipt["ids"][0], name)
    assert [user.call("GET", path).status_code for path in paths_of(ids)] == [404] * len(GET_ROUTES)
    assert user.call("GET", "/v1/jobs").json()["data"] == []
    user.subject()  # the key is good for a new beginning


GET_ROUTES = sorted(path for method, path in OF_SOMEBODY if method == "GET")  # a test holds them to the application's


def paths_of(ids: dict[str, str]) -> list[str]:
    """Where something of somebody's is read: every route of the application, thumbnails and files among them."""
    return [path.format(**ids) for path in GET_ROUTES]


def check_backup(running: Running, backup: Path, owner: str, name: str) -> None:
    """An old copy, restored beside today's keys, cannot be decrypted."""
    assert not list(backup.rglob("*.key"))
    assert (backup / "service.sqlite").stat().st_mode & 0o077 == 0
    restored = Store(backup, Vault(running.settings.data / "keys"))
    assert restored.names(owner, "subjects") == [name]
    with pytest.raises(Missing, match="destroyed"):
        restored.get(owner, "subjects", name)
    engine = open_database(f"sqlite:///{backup / 'service.sqlite'}")
    assert MARKER not in str(every_text(engine))


def test_a_trace_that_is_left_is_found(running: Running, user: User) -> None:
    name = user.subject()
    found = find_traces(running.settings, running.service.engine, [name])
    assert "table subjects" in found
    assert any(place.startswith("name of users/") for place in found)
    left = running.settings.data / "left.bin"
    left.write_bytes(b"x" * (2**20 - 5) + b"needle-in-hay" + b"y")
    assert find_traces(running.settings, running.service.engine, ["needle-in-hay"]) == ["content of left.bin"]
    left.unlink()


def test_the_command_line_proves_a_deletion(running: Running, user: User, tmp_path: Path, capsys: Any) -> None:
    from promptnet.cli import main

    data = str(running.settings.data)
    name = user.subject()
    kept = tmp_path / "receipt.json"
    kept.write_text(json.dumps({"ids": [name]}))
    assert main(["serve", "verify-deletion", "--receipt", str(kept), "--data", data]) == 2
    assert "table subjects" in capsys.readouterr().err
    kept.write_text(user.call("DELETE", "/v1/me").text)
    assert main(["serve", "verify-deletion", "--receipt", str(kept), "--data", data]) == 0
    kept.write_text("{}")
    assert main(["serve", "verify-deletion", "--receipt", str(kept), "--data", data]) == 2
    assert main(["serve", "backup", "--out", str(tmp_path / "copy"), "--data", data]) == 0
    assert main(["serve", "backup", "--out", str(tmp_path / "copy"), "--data", data]) == 2


def test_keys_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    from promptnet.cli import main

    data = str(tmp_path / "data")
    assert main(["serve", "keys", "add", "--data", data, "--open-jobs", "3"]) == 0
    secret, about = capsys.readouterr().out.splitlines()
    key = about.split()[0]
    assert main(["serve", "keys", "list", "--data", data]) == 0
    listed = capsys.readouterr().out
    assert key in listed
    assert "valid" in listed
    assert secret not in listed
    assert main(["serve", "keys", "revoke", "--key", key, "--data", data]) == 0
    assert main(["serve", "keys", "list", "--data", data]) == 0
    assert "revoked" in capsys.readouterr().out


def test_uploads_are_dropped_once_encoded(running: Running, user: User) -> None:
    user.subject()
    user.draw()
    assert running.service.store.names(user.caller.user, "requests") == []
    assert running.service.store.names(user.caller.user, "previews") == []


def test_a_face_of_images_edits_is_forgotten_when_the_job_ends(running: Running, user: User) -> None:
    from tests.serve.conftest import picture

    given = {"prompt": "a photo of S*", "consent": "true", "num_inference_steps": "1"}
    assert user.call("POST", "/v1/images/edits", data=given, files={"image": picture()}).status_code == 200
    assert [running.service.store.names(user.caller.user, kind) for kind in ("subjects", "images", "requests")] == [
        [],
        [],
        [],
    ]
    assert user.call("GET", "/v1/jobs").json()["data"] == []


def test_unused_subjects_expire_and_used_ones_do_not(running: Running, fresh: Callable[..., User]) -> None:
    user = fresh()
    name = user.subject()
    job = user.draw("S*", subjects=[name])
    sweep(running.service, time.time() + 89 * 86400)
    assert user.call("GET", f"/v1/subjects/{name}").status_code == 200
    sweep(running.service, time.time() + 91 * 86400)
    for path in paths_of({"subject": name, "job": job["id"], "image": job["output"]["images"][0]["id"]}):
        assert user.call("GET", path).status_code == 404
    with running.service.engine.connect() as connection:
        assert connection.execute(sa.select(JOBS).where(JOBS.c.owner == user.caller.user)).all() == []


def test_what_a_dead_worker_left_is_swept(running: Running, user: User) -> None:
    store = running.service.store
    store.put(user.caller.user, "images", "img_" + "0" * 24, b"half a job")
    store.put("user_gone", "images", "img_" + "0" * 24, b"of nobody")
    remove_orphans(running.service, time.time() + 60)
    assert store.names(user.caller.user, "images") == ["img_" + "0" * 24]  # it may be being written
    remove_orphans(running.service, time.time() + 3600)
    assert store.names(user.caller.user, "images") == []
    assert "user_gone" not in [*store.users(), *running.service.vault.users()]


def test_everything_of_a_users_can_be_taken_away(user: User) -> None:
    name = user.subject()
    job = user.draw("S*", subjects=[name])
    zipped = zipfile.ZipFile(io.BytesIO(user.call("GET", "/v1/me/export").content))
    image = job["output"]["images"][0]["id"]
    assert {f"subjects/{name}.safetensors", f"images/{image}.png", "records.json"} <= set(zipped.namelist())
    records = json.loads(zipped.read("records.json"))
    assert [row["id"] for row in records["subjects"]] == [name]
    assert zipped.testzip() is None


def test_files_are_encrypted_and_bound_to_their_names(tmp_path: Path) -> None:
    store = Store(tmp_path, Vault(tmp_path / "keys"))
    store.put("user_a", "images", "img_1", b"a face")
    path = tmp_path / "users" / "user_a" / "images" / "img_1"
    assert b"a face" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
    shutil.copy(path, path.with_name("img_2"))
    with pytest.raises(VaultError, match="altered"):
        store.get("user_a", "images", "img_2")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(VaultError, match="altered"):
        store.get("user_a", "images", "img_1")
    other = Store(tmp_path, Vault(tmp_path / "other"))
    with pytest.raises(Missing):
        other.get("user_a", "images", "img_1")


def test_fields_that_may_be_logged_are_a_list() -> None:
    with pytest.raises(AssertionError, match="prompt"):
        logs.log("x", prompt="a face")


def test_a_library_that_quotes_a_prompt_is_logged_without_it(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    try:
        logging.getLogger("promptnet.models.vocabulary").warning("unknown words: %s", MARKER)
        try:
            raise ValueError(MARKER)
        except ValueError:
            logging.getLogger("somebody").exception(MARKER)
    finally:
        logging.basicConfig(force=True)
    said = capfd.readouterr().err
    assert MARKER not in said
    assert '"error": "ValueError"' in said
