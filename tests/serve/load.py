"""Clients that ask until they are told that their jobs are accepted, while workers and servers are killed."""

import io
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from promptnet.inference.subject.subject import Subject
from tests.serve.conftest import picture
from tests.serve.processes import Server

OPEN = ("starting", "processing")
PROMPT = "a photo of a person"


@dataclass(frozen=True)
class Load:
    """How much is asked for.

    Args:
        clients: at a time.
        customise: jobs that learn a person, in all.
        generate: jobs that draw, in all.
        tuning_steps: of the former.
        steps: of the latter.
    """

    clients: int = 8
    customise: int = 8
    generate: int = 32
    tuning_steps: int = 2
    steps: int = 3

    def shares(self) -> list[list[int]]:
        """The jobs' numbers by client; those below `customise` learn."""
        numbers = list(range(self.customise + self.generate))
        return [numbers[client :: self.clients] for client in range(self.clients)]


class Client(threading.Thread):
    """Asks for its jobs, one after the other.

    An Idempotency-Key makes asking again harmless: a server may die after it accepted and before it said so.
    """

    def __init__(self, server: Server, load: Load, numbers: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.server, self.load, self.numbers = server, load, numbers
        self.jobs: list[dict[str, Any]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.server.client() as client:
                self.jobs = [self._accepted(client, number) for number in self.numbers]
        except BaseException as error:
            self.error = error

    def _accepted(self, client: httpx.Client, number: int) -> dict[str, Any]:
        while True:
            try:
                answer = self._ask(client, number, {"Idempotency-Key": f"job {number}"})
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            assert answer.status_code == 202, answer.text
            return {**answer.json(), "number": number}

    def _ask(self, client: httpx.Client, number: int, headers: dict[str, str]) -> httpx.Response:
        if number < self.load.customise:
            fields = {"consent": "true", "steps": str(self.load.tuning_steps), "seed": str(number)}
            return client.post("/v1/subjects", data=fields, files={"images": picture()}, headers=headers)
        asked = {"prompt": PROMPT, "seed": number, "steps": self.load.steps}
        return client.post("/v1/images", json=asked, headers=headers)


def jobs_while_dying(server: Server, load: Load, worker_kills: int, server_kills: int) -> list[dict[str, Any]]:
    """Ask for everything, kill at random moments meanwhile, and return the jobs when all have ended."""
    clients = [Client(server, load, numbers) for numbers in load.shares()]
    for client in clients:
        client.start()
    kills = ["worker"] * worker_kills + ["server"] * server_kills
    draws = random.Random(0)
    draws.shuffle(kills)
    for kill in kills:
        time.sleep(draws.uniform(0.2, 1.0))
        if kill == "worker":
            server.kill_worker()
        else:
            server.kill()
            server.start()
    for client in clients:
        client.join(600)
        assert client.error is None, client.error
    jobs = [job for client in clients for job in client.jobs]
    with server.client() as http:
        ended: dict[str, Any] = {}
        server.until(lambda: _all_ended(http, jobs, ended), 1800)
    return [{**ended[job["id"]], "number": job["number"]} for job in jobs]


def _all_ended(http: httpx.Client, jobs: list[dict[str, Any]], ended: dict[str, Any]) -> bool:
    for job in jobs:
        if job["id"] not in ended:
            found = http.get(f"/v1/jobs/{job['id']}").json()
            if found["status"] in OPEN:
                return False
            ended[job["id"]] = found
    return True


def check_jobs(server: Server, load: Load, jobs: list[dict[str, Any]], pipe: Any) -> None:
    """All have ended well, each once, and every image and person is the one that its seed makes alone."""
    total = load.customise + load.generate
    assert len({job["id"] for job in jobs}) == len(jobs) == total
    assert {job["status"] for job in jobs} == {"succeeded"}, [job["error"] for job in jobs if job["error"]]
    images = [image for job in jobs for image in job["output"]["images"] or []]
    assert len({image["id"] for image in images}) == len(images) == load.generate
    assert len({job["output"]["subject"] for job in jobs} - {None}) == load.customise
    with server.client() as http:
        for image in images:
            _check_image(http, image, load, pipe)
        _check_subject(http, next(job for job in jobs if job["number"] == 0), load, pipe)


def _check_image(http: httpx.Client, image: dict[str, Any], load: Load, pipe: Any) -> None:
    drawn = Image.open(io.BytesIO(http.get(image["url"]).content))
    generator = torch.Generator().manual_seed(image["seed"])
    alone = pipe(PROMPT, num_inference_steps=load.steps, generator=generator).images[0]
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(alone).astype(int)).max() <= 1


def _check_subject(http: httpx.Client, job: dict[str, Any], load: Load, pipe: Any) -> None:
    found = Subject.from_bytes(http.get(f"/v1/subjects/{job['output']['subject']}/file").content)
    generator = torch.Generator().manual_seed(0)
    alone = pipe.customize(
        io.BytesIO(picture()), steps=load.tuning_steps, generator=generator, progress_bar=False
    ).tensors()
    assert found.tensors().keys() == alone.keys()
    for key, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, alone[key], rtol=1e-3, atol=1e-4)
