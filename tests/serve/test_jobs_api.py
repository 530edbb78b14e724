"""The jobs API, from uploads to images."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serve.conftest import STEPS, TINY, Running, User, picture


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_person_is_customised_and_drawn_as_the_pipeline_alone_draws_them(running: Running, user: User) -> None:
    name = user.subject(tune="true", steps=2)
    job = user.draw("a photo of S*", subjects=[name], seed=7, n=2)
    assert job["status"] == "succeeded", job
    assert [image["seed"] for image in job["output"]["images"]] == [7, 8]
    subject = running.worker._load_subject(user.caller.user, name)
    assert subject.num_references == 1
    for image in job["output"]["images"]:
        answer = user.call("GET", image["url"])
        assert answer.headers["content-type"] == "image/png"
        alone = running.worker.pipe(
            "a photo of S*",
            subject=subject,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(image["seed"]),
        ).images[0]
        assert np.abs(pixels(answer.content) - np.asarray(alone).astype(int)).max() <= 1


def test_facts_of_a_subject_and_its_file(user: User) -> None:
    name = user.subject()
    facts = user.call("GET", f"/v1/subjects/{name}").json()
    assert facts["id"] == name
    assert facts["num_references"] == 1
    assert facts["expires_at"] == pytest.approx(facts["used_at"] + 90 * 86400)
    from promptnet.inference.subject.subject import Subject

    assert Subject.from_bytes(user.call("GET", f"/v1/subjects/{name}/file").content).class_word == "person"


def test_a_job_tells_its_place_progress_and_end(user: User) -> None:
    job = user.draw(wait=False, n=2, preview=True)
    with user.running.client.stream("GET", job["urls"]["events"], headers=user.headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert events[-1] == "ended"
    last = json.loads(text.rstrip().rpartition("data: ")[2])
    assert last["status"] == "succeeded"
    assert last["progress"] == {"step": STEPS, "num_steps": STEPS}


def test_a_tuning_tells_every_loss_once(user: User) -> None:
    job = user.subject(tune="true", steps=3, wait=False)
    with user.running.client.stream("GET", job["urls"]["events"], headers=user.headers) as answer:
        text = "".join(answer.iter_text())
    told = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    losses = [loss for event in told for loss in event.get("losses", [])]
    assert [loss["step"] for loss in losses] == [1, 2, 3]
    assert all(0 < loss["loss"] < 10 and 0 < loss["held_out"] < 10 for loss in losses)


def test_a_subject_has_a_thumbnail_and_counts_what_shows_it(running: Running, user: User) -> None:
    name = user.subject()
    assert user.call("GET", f"/v1/subjects/{name}").json()["num_images"] == 0
    user.draw("a photo of S*", subjects=[name], n=2)
    assert user.call("GET", f"/v1/subjects/{name}").json()["num_images"] == 2
    answer = user.call("GET", f"/v1/subjects/{name}/thumbnail")
    assert answer.headers["content-type"] == "image/png"
    assert np.abs(pixels(answer.content) - pixels(picture())).mean() < 40
    user.call("DELETE", f"/v1/subjects/{name}")
    assert running.service.store.names(user.caller.user, "thumbnails") == []


def test_the_same_idempotency_key_is_the_same_job(user: User) -> None:
    given: dict[str, Any] = {"json": {"prompt": "a photo of a person", "steps": 1}, "headers": {"Idempotency-Key": "a"}}
    first, second = (user.call("POST", "/v1/images", **given).json() for _ in range(2))
    assert first["id"] == second["id"]
    given["json"]["prompt"] = "another"
    answer = user.call("POST", "/v1/images", **given)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:promptnet:idempotency-conflict"
    user.ended(first)


def test_pages_hold_everything_once(user: User) -> None:
    made = [user.draw(wait=False, steps=1)["id"] for _ in range(5)]
    found, cursor = [], None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = user.call("GET", "/v1/jobs", params=query).json()
        found += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == made[::-1]


def test_a_waiting_job_is_canceled_at_once_and_a_running_one_after_its_step(user: User) -> None:
    jobs = [user.draw(wait=False, steps=40) for _ in range(2)]
    for job in jobs:
        assert user.call("POST", job["urls"]["cancel"]).status_code == 200
    ended = [user.ended(job) for job in jobs]
    assert [job["status"] for job in ended] == ["canceled"] * 2
    assert all(job["progress"]["step"] < 40 for job in ended)
    assert user.call("POST", jobs[0]["urls"]["cancel"]).status_code == 409


def test_edits_of_the_base_model_and_of_the_user(user: User) -> None:
    known = user.call("GET", "/v1/edits").json()["data"]
    shipped = TINY / "edits" / f"{known[0]['id']}.safetensors"
    files = {"card": ("x.safetensors", shipped.read_bytes())}
    own = user.call("POST", "/v1/edits", files=files)
    assert own.status_code == 201, own.text
    plain, named, brought = (
        user.draw(seed=1, steps=4, edits=edits)
        for edits in ([], [{"edit": shipped.stem, "strength": 1.0}], [{"edit": own.json()["id"]}])
    )
    images = [user.call("GET", job["output"]["images"][0]["url"]).content for job in (plain, named, brought)]
    assert np.abs(pixels(images[1]) - pixels(images[2])).max() == 0
    assert np.abs(pixels(images[0]) - pixels(images[1])).max() > 1
    assert user.call("DELETE", f"/v1/edits/{own.json()['id']}").status_code == 204
    assert user.call("DELETE", f"/v1/edits/{own.json()['id']}").status_code == 404


def test_what_cannot_be_drawn_fails_by_name(user: User) -> None:
    job = user.draw("a photo of a person and " * 40 + "S*", subjects=[user.subject()])
    assert job["status"] == "failed"
    assert job["error"]["code"] == "invalid"
    assert "would be cut off" in job["error"]["message"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompt": "a photo of S*"}, "S*"),
        ({"prompt": "x", "steps": 0}, "num_inference_steps"),
        ({"prompt": "x", "steps": 41}, "num_inference_steps"),
        ({"prompt": "x", "n": 9}, "n"),
        ({"prompt": "x", "size": "63x64"}, "size"),
        ({"prompt": "x", "size": "huge"}, "size"),
        ({"prompt": "x", "word_positions": "none"}, "word_positions"),
        ({"prompt": "x", "fusion_eta": 2}, "fusion_eta"),
        ({"prompt": "x", "no_such_field": 2}, "no_such_field"),
        ({"prompt": "\ud800"}, "prompt"),
        ({}, "prompt"),
    ],
)
def test_requests_are_refused_with_their_field(user: User, given: dict[str, Any], field: str) -> None:
    answer = user.call("POST", "/v1/images", content=json.dumps(given), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in json.dumps(answer.json())


def test_pictures_need_consent(user: User) -> None:
    answer = user.call("POST", "/v1/subjects", files={"images": picture()})
    assert answer.status_code == 422
    assert "consent" in answer.json()["detail"]
    assert user.call("GET", "/v1/consent").json()["version"]


def test_every_parameter_of_a_drawing_can_be_asked_for(user: User) -> None:
    from dataclasses import asdict

    from promptnet.inference.sampling.config import SamplingConfig
    from promptnet.serve.schemas import Drawing

    names = set(asdict(SamplingConfig()))
    assert names <= set(Drawing.model_fields)
    given = {**asdict(SamplingConfig()), "num_inference_steps": 1}
    assert (
        user.ended(user.call("POST", "/v1/images", json={"prompt": "a person", **given}).json())["status"]
        == "succeeded"
    )


def test_a_subject_of_another_base_model_is_a_conflict(running: Running, user: User) -> None:
    from promptnet.serve.database import SUBJECTS

    name = user.subject()
    with running.service.engine.begin() as connection:
        connection.execute(SUBJECTS.update().where(SUBJECTS.c.id == name).values(model="another"))
    answer = user.call("POST", "/v1/images", json={"prompt": "S*", "subjects": [name]})
    assert answer.status_code == 409


def test_a_subject_takes_with_it_what_was_drawn_of_it(user: User) -> None:
    name = user.subject()
    job = user.draw("a photo of S*", subjects=[name])
    url = job["output"]["images"][0]["url"]
    assert user.call("DELETE", f"/v1/subjects/{name}").status_code == 204
    for path in (f"/v1/subjects/{name}", url, job["urls"]["get"]):
        assert user.call("GET", path).status_code == 404


def test_the_service_answers_for_itself(running: Running, user: User) -> None:
    assert running.client.get("/healthz").json() == {"status": "ok"}
    assert running.client.get("/readyz").status_code == 200
    assert user.call("GET", "/v1/models").json()["data"][0]["size"] == "64x64"
