"""A service in this process: its application, its queue, and a worker with the embedded model in threads."""

import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.serve.heartbeat import Heartbeat
from promptnet.serve.keys import KeyLimits
from promptnet.serve.settings import Settings

ROOT = Path(__file__).parents[2]
TINY = ROOT / "checkpoints" / "tiny"
STEPS = 2
PLENTY = KeyLimits(requests_per_minute=100_000, open_jobs=1000, subjects=1000)


def picture(color: tuple[int, int, int] = (200, 160, 120), size_px: int = 64) -> bytes:
    """A PNG of somebody whom the encoder knows; another colour, somebody else."""
    image = render_avatar(sample_avatar(1, sum(color), "validation"), size_px)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def edit_card(pipe: Any) -> bytes:
    """An edit card that fits the pipeline."""
    from promptnet.inference.editing.card import EditCard, edit_fingerprint

    texts = "a portrait of a person", "a happy portrait of a person"
    return EditCard(torch.full((4,), 0.4), *texts, "DDIMScheduler", 3.0, edit_fingerprint(pipe)).to_bytes()


@dataclass
class Running:
    """The service under test."""

    app: Any
    client: TestClient
    worker: Any
    settings: Settings

    @property
    def service(self) -> Any:
        return self.app.service

    def user(self, **limits: int) -> "User":
        secret, caller = self.service.keys.add(limits=KeyLimits(**limits) if limits else PLENTY)
        return User(self, secret, caller)


@dataclass
class User:
    """Somebody with a key."""

    running: Running
    secret: str
    caller: Any

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    def call(self, method: str, path: str, headers: dict[str, str] | None = None, **given: Any) -> Any:
        return self.running.client.request(method, path, headers={**self.headers, **(headers or {})}, **given)

    def ended(self, job: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + seconds
        while job["status"] not in ("succeeded", "failed", "canceled"):
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
            job = self.call("GET", job["urls"]["get"]).json()
        return job

    def subject(self, *, data: bytes | None = None, wait: bool = True, **fields: Any) -> Any:
        """Customise somebody; the subject's id, or without waiting the job."""
        given = {
            "consent": "true",
            "tune": "false",
            "seed": "3",
            **{name: str(value) for name, value in fields.items()},
        }
        answer = self.call("POST", "/v1/subjects", data=given, files={"images": ("me.png", data or picture())})
        assert answer.status_code == 202, answer.text
        if not wait:
            return answer.json()
        job = self.ended(answer.json())
        assert job["status"] == "succeeded", job
        return job["output"]["subject"]

    def draw(self, prompt: str = "a photo of a person", wait: bool = True, **fields: Any) -> Any:
        """Draw; the job."""
        given = {"prompt": prompt, "steps": STEPS, **fields}
        answer = self.call("POST", "/v1/images", json=given)
        assert answer.status_code == 202, answer.text
        return self.ended(answer.json()) if wait else answer.json()


@pytest.fixture(scope="session")
def pipe() -> Any:
    from promptnet import PromptNetPipeline

    return PromptNetPipeline.from_pretrained(TINY, use_safetensors=True)


def settings_for(folder: Path, **given: Any) -> Settings:
    """Settings of a service for tests."""
    return Settings(base=str(TINY), data=folder / "data", sweep_s=3600, max_steps=40, **given)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Iterator[Running]:
    """One service for all tests of the room; they keep out of each other's way by having users of their own."""
    import dbos._queue
    import dbos._scheduler
    import dbos._workflow_commands

    from promptnet.serve import jobs
    from promptnet.serve.app import create_app
    from promptnet.serve.provenance import signer_of
    from promptnet.serve.worker import Worker
    from promptnet.serve.worker_process import job_runner

    # The queue's threads live until the last test of the process: they must not draw from other tests' generator.
    for module in (dbos._queue, dbos._workflow_commands, dbos._scheduler):
        vars(module)["random"] = random.Random()
    settings = settings_for(tmp_path_factory.mktemp("serve"))
    app = create_app(settings)
    worker = Worker(pipe, app.service.records, app.service.store, settings, signer_of(settings))
    Heartbeat(worker, 0).write(ready=True)
    jobs.work(settings.database_url, 0, job_runner(worker), settings.jobs_at_once)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Running(app, client, worker, settings)
    jobs.stop()


@pytest.fixture
def fresh(running: Running) -> Callable[..., User]:
    """Makes a new user; the worker's last beat is fresh."""
    Heartbeat(running.worker, 0).write(ready=True)
    return running.user


@pytest.fixture
def user(fresh: Callable[..., User]) -> User:
    return fresh()
