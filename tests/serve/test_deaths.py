"""Every accepted job ends exactly once, whatever is killed. The long form is benchmarks/serve/deaths.py."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from promptnet.serve.logs import FIELDS
from promptnet.serve.records import NewJob, Records
from tests.serve.load import Load, check_jobs, jobs_while_dying
from tests.serve.processes import Server, served


def test_40_jobs_survive_three_workers_and_a_server_and_a_stop_requeues(tmp_path: Path, pipe: Any) -> None:
    with served(tmp_path) as server:
        jobs = jobs_while_dying(server, Load(), worker_kills=3, server_kills=1)
        check_jobs(server, Load(), jobs, pipe)
        check_stop(server)
    assert {name for event in server.events() for name in event} <= FIELDS | {"time", "level"}


def check_stop(server: Server) -> None:
    """A graceful stop ends the running step, lets the job wait, and does not count as a death."""
    with server.client() as http:
        asked = {"prompt": "a photo of a person", "seed": 5, "steps": 200}
        job = http.post("/v1/images", json=asked).json()
        server.until(lambda: http.get(f"/v1/jobs/{job['id']}").json()["progress"]["step"] > 0)
        metrics = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    assert 'promptnet_jobs{kind="images",state="succeeded"} 32.0' in metrics
    assert server.stop() < 10
    row = Records(server.engine).job(job["id"])
    assert row is not None
    assert (row.state, row.starts, row.step) == ("starting", 0, 0)


@pytest.mark.parametrize("starts", [3])
def test_a_poisonous_job_fails_at_its_fourth_start(running: Any, user: Any, starts: int) -> None:
    job, _ = running.service.records.accept(user.caller, NewJob("job_" + "0" * 24, "images"), 0)
    for _ in range(starts):
        assert running.service.records.begin(job.id)  # and the worker dies
    running.worker.run(job.id)
    found = user.call("GET", f"/v1/jobs/{job.id}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "poisonous")
