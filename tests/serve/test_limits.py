"""Limits: 429 with Retry-After at once beyond them, nothing felt within them; 413, 415 and slow bodies."""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from promptnet.serve.gate import _Body
from promptnet.serve.problems import Problem
from promptnet.serve.settings import Settings
from tests.serve.conftest import Running, User, picture


def test_200_requests_beyond_the_rate_are_refused_at_once(fresh: Callable[..., User]) -> None:
    greedy, modest = fresh(requests_per_minute=5), fresh(requests_per_minute=50)
    statuses, times_ms = [], []
    for count in range(205):
        start = time.perf_counter()
        answer = greedy.call("GET", "/v1/jobs")
        times_ms.append((time.perf_counter() - start) * 1000)
        statuses.append(answer.status_code)
        if count % 20 == 0:
            assert modest.call("GET", "/v1/jobs").status_code == 200
    assert statuses == [200] * 5 + [429] * 200
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert statistics.median(times_ms[5:]) < 50


def test_open_jobs_subjects_and_bytes_are_limited(fresh: Callable[..., User]) -> None:
    user = fresh(open_jobs=2)
    jobs = [user.draw(wait=False, steps=40) for _ in range(2)]
    answer = user.call("POST", "/v1/images", json={"prompt": "a person"})
    assert answer.status_code == 429
    assert answer.json()["type"] == "urn:promptnet:too-many-open-jobs"
    for job in jobs:
        user.call("POST", job["urls"]["cancel"])
        user.ended(job)
    assert user.draw(steps=1)["status"] == "succeeded"

    user = fresh(subjects=1)
    user.subject()
    answer = user.call("POST", "/v1/subjects", data={"consent": "true"}, files={"images": picture()})
    assert answer.json()["type"] == "urn:promptnet:too-many-subjects"

    user = fresh(bytes=10)
    answer = user.call("POST", "/v1/images", json={"prompt": "a person"})
    assert answer.status_code == 202
    user.ended(answer.json())
    answer = user.call("POST", "/v1/images", json={"prompt": "a person"})
    assert answer.json()["type"] == "urn:promptnet:too-many-bytes"


def test_limits_hold_when_many_ask_at_once(fresh: Callable[..., User]) -> None:
    user = fresh(open_jobs=3, requests_per_minute=1000)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(user.call("POST", "/v1/images", json={"prompt": "a person", "steps": 40}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202] * 3 + [429] * 5
    for job in user.call("GET", "/v1/jobs").json()["data"]:
        user.call("POST", job["urls"].get("cancel", job["urls"]["get"]))


def test_the_first_job_of_each_user_is_before_anybodys_second(fresh: Callable[..., User]) -> None:
    busy, newcomer = fresh(), fresh()
    jobs = [busy.draw(wait=False, steps=1) for _ in range(3)]
    late = newcomer.draw(wait=False, steps=1)
    records = busy.running.service.records
    found = [records.job(job["id"]).priority for job in [*jobs, late]]
    assert found[0] == found[-1] == 1
    assert found == sorted(found[:3]) + [1]


def test_bodies_that_are_too_large_are_not_read(user: User) -> None:
    most = user.running.settings.max_upload_bytes
    answer = user.call("POST", "/v1/images", content=b"", headers={"Content-Length": str(most + 1)})
    assert answer.status_code == 413

    def parts() -> Any:
        for _ in range(most // 2**20 + 2):
            yield b" " * 2**20

    answer = user.call("POST", "/v1/images", content=parts(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/subjects", "/v1/images/edits", "/v1/edits"])
def test_forms_are_wanted_where_files_are(user: User, path: str) -> None:
    assert user.call("POST", path, json={"a": 1}).status_code == 415
    assert user.call("POST", path).status_code == 422


def test_json_is_wanted_where_none_are(user: User) -> None:
    assert user.call("POST", "/v1/images", data={"prompt": "x"}).status_code == 415
    assert user.call("POST", "/v1/images", content=b"<a/>", headers={"Content-Type": "text/xml"}).status_code == 415


def test_a_body_that_does_not_come_is_given_up(tmp_path: Any) -> None:
    async def never() -> Any:
        await asyncio.sleep(60)

    body = _Body(never, Settings(base="", data=tmp_path, body_s=0.05))
    with pytest.raises(Problem) as refusal:
        asyncio.run(body())
    assert refusal.value.status == 408


def test_limits_are_numbers_of_at_least_one() -> None:
    from promptnet.serve.keys import KeyLimits

    with pytest.raises(ValueError, match="open_jobs=0 must be at least 1"):
        KeyLimits(open_jobs=0)


def test_a_key_that_is_revoked_in_the_middle_makes_no_job(running: Running, user: User) -> None:
    from promptnet.serve.records import KeyIsGone, NewJob

    running.service.keys.revoke(user.caller.key)
    with pytest.raises(KeyIsGone):
        running.service.records.accept(user.caller, NewJob("job_" + "1" * 24, "images"), 0)
