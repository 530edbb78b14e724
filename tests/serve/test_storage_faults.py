"""A full disk and a locked database: jobs wait or fail by name, nothing is lost, nothing is half accepted."""

import errno
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from promptnet.serve import store as store_module
from promptnet.serve.records import NewJob
from promptnet.serve.sweeper import reconcile
from tests.serve.conftest import Running, User


def full_disk(*_args: Any, **_named: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_with_a_full_disk_nothing_is_accepted(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_whole", full_disk)
        answer = user.call("POST", "/v1/images", json={"prompt": "a person"})
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:promptnet:storage"
    assert int(answer.headers["retry-after"]) > 0
    assert user.call("GET", "/v1/jobs").json()["data"] == []


def test_a_disk_that_fills_while_a_job_runs_fails_it_by_name(
    running: Running, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"prompt": "a person", "negative_prompt": None, "size": None, "edits": [], "subjects": []}
    request |= {"sampling": {"num_inference_steps": 1}, "seeds": [1], "metadata": False, "preview": False}
    job, _ = running.service.records.accept(user.caller, NewJob("job_" + "2" * 24, "images"), 0)
    running.service.store.put(user.caller.user, "requests", job.id, json.dumps(request).encode())
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_whole", full_disk)
        running.worker.run(job.id)
    found = user.call("GET", f"/v1/jobs/{job.id}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "storage")


def test_a_database_that_is_locked_for_5_s_loses_nothing(running: Running, user: User) -> None:
    path = running.settings.data / "service.sqlite"
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(user.draw(wait=False, steps=1)))
    asking.start()
    time.sleep(5)
    assert not answers
    lock.execute("ROLLBACK")
    lock.close()
    asking.join(30)
    assert user.ended(answers[0])["status"] == "succeeded"


def test_a_job_that_was_accepted_and_not_queued_is_queued_later(
    running: Running, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_args: Any) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(running.service.queue, "enqueue", unreachable)
        job = user.draw(wait=False, steps=1)
    time.sleep(0.5)
    assert user.call("GET", job["urls"]["get"]).json()["status"] == "starting"
    reconcile(running.service, time.time() + 60)
    assert user.ended(job)["status"] == "succeeded"


def test_a_job_that_the_queue_is_done_with_is_given_up(running: Running, user: User) -> None:
    job = user.draw(steps=1)
    from promptnet.serve.database import JOBS

    with running.service.engine.begin() as connection:
        connection.execute(JOBS.update().where(JOBS.c.id == job["id"]).values(state="processing"))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and user.call("GET", job["urls"]["get"]).json()["status"] == "processing":
        reconcile(running.service, time.time() + 60)
        time.sleep(0.2)
    assert user.call("GET", job["urls"]["get"]).json()["error"]["code"] == "internal"


def test_a_database_that_cannot_be_opened_is_said_without_its_password(tmp_path: Path) -> None:
    from promptnet.serve.database import open_database

    with pytest.raises(ValueError, match="the database cannot be opened") as refusal:
        open_database("nonsense://user:secret@host/database")
    assert "secret" not in str(refusal.value)
