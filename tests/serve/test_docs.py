"""The examples of docs/serve.md, as they stand there, against a server that listens."""

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from tests.serve.conftest import ROOT, Running, User, picture
from tests.serve.processes import free_port

PAGE = (ROOT / "docs" / "serve.md").read_text("utf-8")


@pytest.fixture
def port(running: Running) -> Iterator[int]:
    config = uvicorn.Config(running.app, port=free_port(), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield config.port
    server.should_exit = True
    thread.join(10)


def blocks(language: str, port: int) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return [block.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for block in found]


def run(block: str, folder: Path, **variables: str) -> str:
    env = {**os.environ, **variables}
    return subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout


def test_the_examples_run(port: int, user: User, tmp_path: Path) -> None:
    (tmp_path / "me.png").write_bytes(picture())
    customise, events, draw, fetch = blocks("shell", port)
    job = json.loads(run(customise, tmp_path, KEY=user.secret))
    said = run(events, tmp_path, KEY=user.secret, JOB=job["id"])
    assert "event: ended" in said
    subject = user.ended(job)["output"]["subject"]
    drawn = user.ended(json.loads(run(draw, tmp_path, KEY=user.secret, SUBJECT=subject)))
    run(fetch, tmp_path, KEY=user.secret, IMAGE=drawn["output"]["images"][0]["id"])
    assert Image.open(tmp_path / "drawn.png").size == (64, 64)
    (code,) = blocks("python", port)
    names: dict[str, Any] = {"key": user.secret, "subject": subject}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(code, names)
    assert names["answer"].data[0].b64_json
    assert names["edited"].data[0].b64_json


def test_every_route_is_on_the_page(running: Running) -> None:
    paths = running.client.get("/openapi.json").json()["paths"]
    named = {re.sub(r"{\w+}", "{id}", path) for path in paths}
    assert [path for path in named if path not in PAGE] == []
