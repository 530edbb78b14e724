"""The service and the bulk command on a simulated Ray cluster of two nodes, and what needs no Ray."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptnet.serve.ray import app, parse
from tests.serve.conftest import PLENTY, ROOT, TINY, Running, User
from tests.serve.processes import free_port

NEEDED = {"base": "b", "data": "d"}


def test_arguments_come_as_text_and_the_database_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTNET_DATABASE", "postgresql://u:p@h/d")
    settings, own = parse({**NEEDED, "workers": "8", "num_gpus": "0.5", "threads": "2", "content_credentials": "false"})
    assert settings.database == "postgresql://u:p@h/d"
    assert (settings.threads, settings.content_credentials, settings.workers, settings.metrics_port) == (2, False, 0, 0)
    assert (own["workers"], own["num_gpus"], own["api_replicas"]) == (8, 0.5, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"base": "b"}, "argument 'data' is missing"),
        ({**NEEDED, "worker": 2}, "unknown argument 'worker'"),
        ({**NEEDED, "threads": "many"}, "argument threads=many must be of the kind int"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(args)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"promptnet\[serve,ray\]"):
        app(NEEDED)


def test_more_waiting_jobs_than_the_service_takes_are_429(
    running: Running, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(running.service, "settings", replace(running.settings, max_queued_requests=3))
    monkeypatch.setattr(running.service.records, "num_waiting", lambda: 3)
    answer = user.call("POST", "/v1/images", json={"prompt": "a person", "steps": 1})
    assert answer.status_code == 429
    assert answer.json()["type"] == "urn:promptnet:busy"
    assert int(answer.headers["retry-after"]) >= 1
    monkeypatch.setattr(running.service.records, "num_waiting", lambda: 2)
    user.ended(user.call("POST", "/v1/images", json={"prompt": "a person", "steps": 1}).json())


@pytest.fixture
def nodes() -> Iterator[Any]:
    """Two nodes on this machine; only the second has the resource of the worker that is killed."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    head = {"num_cpus": 2, "object_store_memory": memory, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, second
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_is_killed_loses_no_accepted_job_and_excess_is_429(nodes: Any, tmp_path: Path) -> None:
    from ray import serve

    from promptnet.serve.database import open_database
    from promptnet.serve.keys import Keys
    from promptnet.serve.settings import Settings

    cluster, second = nodes
    port, data = free_port(), tmp_path / "data"
    data.mkdir()
    settings = Settings(base=str(TINY), data=data)
    secret, _ = Keys(open_database(settings.database_url)).add(limits=PLENTY)
    args = {"base": str(TINY), "data": str(data), "workers": 2, "num_cpus": 1.1, "api_num_cpus": 0.1, "threads": 1}
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({**args, "max_queued_requests": 12, "jobs_at_once": 1}), name="promptnet", blocking=False)
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        asked = [client.post("/v1/images", json={"prompt": "a person", "steps": 4, "seed": k}) for k in range(30)]
        statuses = {answer.status_code for answer in asked}
        assert statuses == {202, 429}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in asked if answer.status_code == 429)
        accepted = [answer.json()["id"] for answer in asked if answer.status_code == 202]
        cluster.remove_node(second, allow_graceful=False)
        until(lambda: all(status_of(client, job) == "succeeded" for job in accepted))


def status_of(client: httpx.Client, job: str) -> str:
    return client.get(f"/v1/jobs/{job}").json()["status"]


def until(true: Any, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError("it did not come true")


@pytest.mark.slow
def test_64_subjects_from_a_table_are_the_same_on_two_nodes_as_in_one_process(nodes: Any, tmp_path: Path) -> None:
    from promptnet import Subject
    from promptnet.commands.batch import batch

    assert nodes
    image = Image.open(ROOT / "promptnet/serve/web/example.png").convert("RGB")
    for place in range(64):
        image.rotate(place / 64, fillcolor=(36, 54, 107)).save(tmp_path / f"{place}.png")
    for name, workers in (("one", 1), ("two", 2)):
        rows = {"image": [f"{k}.png" for k in range(64)], "class_word": ["person"] * 64}
        rows["out"] = [f"{name}/{k}.safetensors" for k in range(64)]
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        batch(tmp_path / f"{name}.parquet", workers=workers, steps=1, threads=1, device="cpu", cpus_each=1.5)
    for k in range(64):
        one, two = (Subject.load(tmp_path / name / f"{k}.safetensors") for name in ("one", "two"))
        assert one.content_hash == two.content_hash
