"""Every accepted job ends exactly once, whatever is killed. The long form is benchmarks/serve/deaths.py."""

import io
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.inference.subject.subject import Subject
from promptnet.serve.logs import FIELDS
from tests.serve.conftest import picture
from tests.serve.processes import Server, served

CLIENTS, JOBS_EACH, STEPS = 8, 5, 3


class Client(threading.Thread):
    """Asks for one person and then for images, again and again until it is told that they are accepted.

    An Idempotency-Key makes asking again harmless: a server may die after it accepted and before it said so.
    """

    def __init__(self, server: Server, number: int) -> None:
        super().__init__(daemon=True)
        self.server, self.number = server, number
        self.jobs: list[dict[str, Any]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.server.client() as client:
                for count in range(JOBS_EACH):
                    self.jobs.append(self._ask(client, f"{self.number}-{count}", count))
        except BaseException as error:
            self.error = error

    def _ask(self, client: httpx.Client, key: str, count: int) -> dict[str, Any]:
        headers = {"Idempotency-Key": key}
        while True:
            try:
                if count == 0:
                    fields = {"consent": "true", "steps": "2", "seed": str(self.number)}
                    answer = client.post("/v1/subjects", data=fields, files={"images": picture()}, headers=headers)
                else:
                    asked = {"prompt": "a photo of a person", "seed": 100 * self.number + count, "steps": STEPS}
                    answer = client.post("/v1/images", json=asked, headers=headers)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            assert answer.status_code == 202, answer.text
            return answer.json()


def test_40_jobs_survive_three_workers_and_a_server(tmp_path: Path, pipe: Any) -> None:
    with served(tmp_path) as server:
        clients = [Client(server, number) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(2):
            time.sleep(0.5)
            server.kill_worker()
        time.sleep(0.3)
        server.kill()
        server.start()
        server.kill_worker()
        for client in clients:
            client.join(300)
            assert client.error is None
        jobs = [job for client in clients for job in client.jobs]
        assert len({job["id"] for job in jobs}) == CLIENTS * JOBS_EACH
        with server.client() as http:
            server.until(lambda: all(status_of(http, job) not in ("starting", "processing") for job in jobs))
            ended = [http.get(f"/v1/jobs/{job['id']}").json() for job in jobs]
            assert [job["status"] for job in ended] == ["succeeded"] * len(jobs)
            names = [image["id"] for job in ended for image in job["output"]["images"] or []]
            assert len(names) == len(set(names)) == CLIENTS * (JOBS_EACH - 1)
            assert len(listed(http, "/v1/subjects")) == CLIENTS
            check_images(http, ended, pipe)
            check_subject(http, ended, pipe)
            assert server.stop() < 10
    assert {name for event in server.events() for name in event} <= FIELDS | {"time", "level"}


def status_of(http: httpx.Client, job: dict[str, Any]) -> str:
    """The job's state; those that have ended are not asked for again."""
    if job.get("ended") is None:
        status = http.get(f"/v1/jobs/{job['id']}").json()["status"]
        if status in ("starting", "processing"):
            return status
        job["ended"] = status
    return job["ended"]


def listed(http: httpx.Client, path: str) -> list[Any]:
    return http.get(path, params={"limit": 100}).json()["data"]


def check_images(http: httpx.Client, jobs: list[dict[str, Any]], pipe: Any) -> None:
    """Every image is the one that its seed makes alone."""
    for job in jobs:
        for image in job["output"]["images"] or []:
            drawn = Image.open(io.BytesIO(http.get(image["url"]).content))
            generator = torch.Generator().manual_seed(image["seed"])
            alone = pipe("a photo of a person", num_inference_steps=STEPS, generator=generator).images[0]
            assert np.abs(np.asarray(drawn).astype(int) - np.asarray(alone).astype(int)).max() <= 1


def check_subject(http: httpx.Client, jobs: list[dict[str, Any]], pipe: Any) -> None:
    """A customised person is the one that the seed makes alone."""
    name = jobs[0]["output"]["subject"]
    found = Subject.from_bytes(http.get(f"/v1/subjects/{name}/file").content)
    alone = pipe.customize(
        io.BytesIO(picture()), steps=2, generator=torch.Generator().manual_seed(0), progress_bar=False
    )
    assert found.tensors().keys() == alone.tensors().keys()
    for key, tensor in alone.tensors().items():
        torch.testing.assert_close(found.tensors()[key], tensor, rtol=1e-3, atol=1e-4)


def test_a_graceful_stop_requeues_what_runs(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        with server.client() as http:
            asked = {"prompt": "a photo of a person", "seed": 5, "steps": 200}
            job = http.post("/v1/images", json=asked).json()
            server.until(lambda: http.get(f"/v1/jobs/{job['id']}").json()["progress"]["step"] > 0)
        assert server.stop() < 10
        row = server_job(server, job["id"])
        assert (row.state, row.starts, row.step) == ("starting", 0, 0)
        server.start()
        with server.client() as http:
            server.until(lambda: http.get(f"/v1/jobs/{job['id']}").json()["progress"]["step"] > 0)
            assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
            server.until(lambda: http.get(f"/v1/jobs/{job['id']}").json()["status"] == "canceled")
            metrics = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    assert 'promptnet_jobs{kind="images",state="canceled"} 1.0' in metrics


def server_job(server: Server, job: str) -> Any:
    from promptnet.serve.records import Records

    found = Records(server.engine).job(job)
    assert found is not None
    return found


@pytest.mark.parametrize("starts", [3])
def test_a_poisonous_job_fails_at_its_fourth_start(running: Any, user: Any, starts: int) -> None:
    from promptnet.serve.records import NewJob

    job, _ = running.service.records.accept(user.caller, NewJob("job_" + "0" * 24, "images"), 0)
    for _ in range(starts):
        assert running.service.records.begin(job.id)  # and the worker dies
    running.worker.run(job.id)
    found = user.call("GET", f"/v1/jobs/{job.id}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "poisonous")
