"""OpenAI's client against this service."""

import base64
import io
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from promptnet.serve.provenance import credentials_in
from tests.serve.conftest import User, picture


@pytest.fixture
def client(user: User) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=user.secret, base_url="http://testserver/v1", http_client=user.running.client, max_retries=0
    )


def drawn(answer: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).convert("RGB"))


def test_generations_with_a_subject(client: openai.OpenAI, user: User) -> None:
    extra = {"subject": user.subject(), "seed": 5, "num_inference_steps": 2}
    answer = client.images.generate(
        prompt="a photo of S*", n=2, size="64x64", response_format="b64_json", user="me", extra_body=extra
    )
    assert drawn(answer).shape == (64, 64, 3)
    assert len(answer.data or []) == 2
    job = user.draw("a photo of S*", subjects=[extra["subject"]], seed=5)
    same = np.asarray(
        Image.open(io.BytesIO(user.call("GET", job["output"]["images"][0]["url"]).content)).convert("RGB")
    )
    assert np.abs(drawn(answer).astype(int) - same.astype(int)).max() <= 1


def test_edits_need_consent_and_forget(client: openai.OpenAI, user: User) -> None:
    given: dict[str, Any] = {"image": picture(), "prompt": "a photo of S*"}
    with pytest.raises(openai.UnprocessableEntityError, match="consent"):
        client.images.edit(**given)
    answer = client.images.edit(**given, extra_body={"consent": True, "num_inference_steps": 1, "seed": 1})
    assert drawn(answer).shape == (64, 64, 3)
    assert user.call("GET", "/v1/subjects").json()["data"] == []


def test_errors_are_the_clients_own(client: openai.OpenAI, user: User) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="does not mention"):
        client.images.generate(prompt="nobody", extra_body={"subject": "sub_" + "0" * 24})
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="S*", extra_body={"subject": "sub_" + "0" * 24})
    with pytest.raises(openai.UnprocessableEntityError, match="response_format"):
        client.images.generate(prompt="a person", response_format="url")
    with pytest.raises(openai.UnprocessableEntityError, match="cut off"):
        client.images.generate(prompt="a person and " * 50 + "S*", extra_body={"subject": user.subject()})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="pn_wrong").images.generate(prompt="a person")


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.owned_by for model in client.models.list()] == ["promptnet"]


def test_images_say_that_they_were_generated_and_never_the_prompt(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a zebra", extra_body={"num_inference_steps": 1, "seed": 9})
    data = base64.b64decode((answer.data or [])[0].b64_json or "")
    found = credentials_in(data)
    assert found is not None
    assert found.state == "Valid"
    assert found.generated
    assert b"zebra" not in data
    assert Image.open(io.BytesIO(data)).text["promptnet"] == '{"model": "tiny", "seed": 9}'  # type: ignore[attr-defined]
