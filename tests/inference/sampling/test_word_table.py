"""An encoder that does not look at the latents makes the words of a drawing at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from promptnet.inference.sampling.conditions import SubjectPrompts, networks_of
from promptnet.inference.sampling.requests import make_requests, moved
from promptnet.inference.sampling.schedule import Step, plan
from promptnet.inference.sampling.word_table import MOST_ROWS, MOST_TABLES

PROMPT = "a photo of S*"


@pytest.fixture
def table_pipe(pipe: Any) -> Iterator[Any]:
    """A pipeline whose encoder looks at the reference alone."""
    pipe.promptnet.with_noise = False  # as if it had been made so; its configuration is not looked at in a call
    yield pipe
    pipe.promptnet.with_noise = True


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """Rows of the encoder's calls."""
    rows: list[int] = []
    handle = pipe.promptnet.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    try:
        yield rows
    finally:
        handle.remove()


def words_of(pipe: Any, prompts: list[str], subjects: Any, steps: list[Step], *, table: bool) -> Tensor:
    """S* in each step, (steps, N, L, D)."""
    rows = moved(make_requests(prompts, subjects), pipe.unet.device)
    timesteps = [step.timestep for step in steps] if table else []
    made = SubjectPrompts(networks_of(pipe), rows, range(len(rows)), timesteps=timesteps)
    x = torch.randn(len(rows), 4, *[pipe.unet.config["sample_size"]] * 2)
    with torch.no_grad():
        return torch.stack([made.pseudo_words(x, step) for step in steps])


def test_words_of_the_table_are_those_of_each_step(table_pipe: Any, make_subject: Any):
    """Two people, one of them with two images and in two rows; more words than one call of the encoder takes."""
    one, two = make_subject(table_pipe, 1, tuned=True), make_subject(table_pipe, 2, num_references=2)
    table_pipe.scheduler.set_timesteps(30)
    given = table_pipe, [PROMPT] * 3, [one, two, two], plan(table_pipe.scheduler)
    with counted(table_pipe) as rows:
        found = words_of(*given, table=True)
    assert rows == [MOST_ROWS, 3 * 30 - MOST_ROWS]
    torch.testing.assert_close(found, words_of(*given, table=False), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [{"fusion_steps": 1}, {"fusion_steps": 0, "pseudo_word_every": 2}])
def test_a_drawing_calls_the_encoder_once(table_pipe: Any, make_subject: Any, config: dict[str, Any]):
    subject = make_subject(table_pipe, tuned=True)
    given: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "subject": subject, **config}
    with counted(table_pipe) as rows:
        table_pipe([PROMPT, PROMPT], generator=torch.Generator().manual_seed(0), **given)
    assert rows == [3]


def test_words_are_kept_with_their_subject(table_pipe: Any, make_subject: Any):
    """As long as everything they depend on is the same."""
    subject = make_subject(table_pipe, tuned=True)

    def drawn(subject: Any, steps: int = 3) -> tuple[Tensor, list[int]]:
        given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent", "subject": subject}
        with counted(table_pipe) as rows:
            return table_pipe(PROMPT, generator=torch.Generator().manual_seed(0), **given).images, rows

    first, rows = drawn(subject)
    again, no_rows = drawn(subject)
    assert (rows, no_rows) == ([3], [])
    assert torch.equal(first, again)
    assert drawn(subject, steps=4)[1] == [4]
    weaker, rows = drawn(subject.scaled(0.5))
    assert rows == [3]
    assert not torch.equal(weaker, first)
    for steps in range(5, 8):
        drawn(subject, steps)
    assert len(subject.tables) == MOST_TABLES
    assert drawn(subject)[1] == [3]


def test_words_of_an_encoder_with_adapters_are_not_kept(table_pipe: Any, make_subject: Any):
    """Its weights' hash does not tell of them."""
    subject = make_subject(table_pipe)
    vars(table_pipe.promptnet.conv_in)["base_layer"] = True
    try:
        table_pipe(PROMPT, subject=subject, num_inference_steps=3, output_type="latent")
    finally:
        del vars(table_pipe.promptnet.conv_in)["base_layer"]
    assert not subject.tables


def test_words_that_are_learned_are_made_step_by_step(table_pipe: Any, make_subject: Any):
    """A table would belong to one backward pass."""
    rows = make_requests(PROMPT, make_subject(table_pipe))
    table_pipe.scheduler.set_timesteps(3)
    (first, *_), steps = plan(table_pipe.scheduler), plan(table_pipe.scheduler)
    made = SubjectPrompts(networks_of(table_pipe), rows, [0], timesteps=[step.timestep for step in steps])
    with counted(table_pipe) as calls:
        made.pseudo_words(torch.zeros(1, 4, 8, 8), first)
    assert calls == [1]


def test_an_encoder_that_looks_at_the_latents_has_no_table(pipe: Any, make_subject: Any):
    with counted(pipe) as rows:
        pipe(PROMPT, subject=make_subject(pipe), num_inference_steps=3, fusion_steps=0, output_type="latent")
    assert rows == [1, 1, 1]
