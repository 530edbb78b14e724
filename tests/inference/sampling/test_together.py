"""Drawings of several threads in one batch: each is what it is alone, whoever else is there."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from promptnet.inference.sampling import together as module
from promptnet.inference.sampling.loop import UNetInputs
from promptnet.inference.sampling.schedule import Step
from promptnet.inference.sampling.together import Together, _Asked
from promptnet.inference.subject.lora import LoRALayer, RowLoRAs, key_value_layers
from promptnet.inference.subject.lora_buffers import LoRABuffers
from tests.inference.conftest import TEXT_WIDTH

Call = Callable[[], Tensor]


@pytest.fixture
def subjects(pipe: Any, make_subject: Any) -> list[Any]:
    return [make_subject(pipe, seed, tuned=True) for seed in range(3)]


def drawings(pipe: Any, subjects: list[Any]) -> list[Call]:
    """People and nobody, with other numbers of steps, guidance and images."""

    def drawn(prompt: str, steps: int, seed: int, **options: Any) -> Call:
        return lambda: (
            pipe(
                prompt,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **options,
            ).images
        )

    return [
        drawn("a photo of S*", 5, 1, subject=subjects[0]),
        drawn("a photo of S* wearing a hat", 8, 2, subject=subjects[1], num_images_per_prompt=2),
        drawn("a dog", 6, 3),
        drawn("a photo of S*", 3, 4, subject=subjects[2], class_scale=2.0),
        drawn("a woman on a red chair", 4, 5, guidance_scale=1.0),
    ]


def in_threads(calls: list[Call], shared: Together) -> list[Any]:
    found: list[Any] = [None] * len(calls)

    def run(place: int, call: Call) -> None:
        try:
            with shared.joined(f"user {place}"):
                found[place] = call()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=entry) for entry in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def test_drawings_at_different_steps_share_batches_and_are_what_they_are_alone(pipe: Any, subjects: list[Any]) -> None:
    calls = drawings(pipe, subjects)
    alone = [call() for call in calls]
    shared = Together(pipe.unet, wait_s=1.0)
    for one, expected in zip(in_threads(calls, shared), alone, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    evaluations = 2 * (5 + 8 + 3) + 6 + 4  # with fusion, each step of a subject has two
    assert shared.counts["unet_calls"] <= evaluations * 2 // 3
    assert shared.counts["unet_rows"] > 2 * shared.counts["unet_calls"]


def test_few_rows_a_call_still_serve_everybody(pipe: Any, subjects: list[Any]) -> None:
    calls = drawings(pipe, subjects)
    found = in_threads(calls, Together(pipe.unet, max_rows=3))
    for one, call in zip(found, calls, strict=True):
        torch.testing.assert_close(one, call(), rtol=1e-4, atol=1e-4)


def evaluation(pipe: Any, subject: Any, seed: int, timestep: int) -> _Asked:
    """Two rows, one with the subject's layers."""
    generator = torch.Generator().manual_seed(seed)
    x, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 24, TEXT_WIDTH, generator=generator)
    loras = RowLoRAs((subject.unet_loras, None))
    step = Step(0, 1, torch.tensor(timestep), 0.5, 0.6)
    return _Asked(pipe.unet, x, step, UNetInputs(states, loras=loras), None, str(seed), 0.0)


def test_rows_come_back_in_their_order(pipe: Any, subjects: list[Any]) -> None:
    """The long form, 1,000 orders, is benchmarks/serve/batching.py."""
    asked = [evaluation(pipe, subjects[place % 3], place, 100 * place + 1) for place in range(5)]
    shared = Together(pipe.unet)
    alone = [shared._evaluated([one])[0] for one in asked]
    draws = random.Random(0)
    for _ in range(30):
        order = draws.sample(range(5), 5)
        for place, result in zip(order, shared._evaluated([asked[place] for place in order]), strict=True):
            torch.testing.assert_close(result, alone[place], rtol=1e-4, atol=1e-4)


def test_one_users_layers_reach_no_other_row(pipe: Any, subjects: list[Any]) -> None:
    copies = {name: LoRALayer(lora.A.clone(), lora.B.clone()) for name, lora in subjects[1].loras.items()}
    broken = replace(subjects[1], loras=copies)
    for lora in broken.loras.values():
        lora.B.fill_(float("nan"))
    good, bad = evaluation(pipe, subjects[0], 0, 500), evaluation(pipe, broken, 1, 300)
    shared = Together(pipe.unet)
    (alone,) = shared._evaluated([good])
    for pair in ([good, bad], [bad, good]):
        results = dict(zip(map(id, pair), shared._evaluated(pair), strict=True))
        torch.testing.assert_close(results[id(good)], alone, rtol=1e-4, atol=1e-4)
        assert results[id(bad)][0].isnan().all()
        assert results[id(bad)][1].isfinite().all()
    torch.testing.assert_close(shared._evaluated([good])[0], alone, rtol=1e-4, atol=1e-4)  # nothing stays


def test_buffers_keep_their_shape_and_place(pipe: Any, subjects: list[Any]) -> None:
    buffers = LoRABuffers(key_value_layers(pipe.unet), 4, 3)
    before = {name: (A.data_ptr(), A.shape) for name, (A, _) in buffers.filled([None] * 4).items()}
    assert set(before) == set(key_value_layers(pipe.unet))
    for rows in ([subjects[0].unet_loras, None, subjects[1].unet_loras, None], [None] * 4):
        stacks = buffers.filled(rows)
        assert {name: (A.data_ptr(), A.shape) for name, (A, _) in stacks.items()} == before
        for name, (A, B) in stacks.items():
            for row, loras in enumerate(rows):
                expected = loras[name].matrix() if loras else torch.zeros(B.shape[1], A.shape[2])
                torch.testing.assert_close(B[row] @ A[row], expected)
    assert not buffers.fits([None] * 5)
    assert not buffers.fits([{"elsewhere": next(iter(subjects[0].unet_loras.values()))}])


def test_buffers_hold_nothing_of_those_before(pipe: Any) -> None:
    """Random people one after another, of any rank and with layers of their own, leave what a clean fill would."""
    draws, layers = torch.Generator().manual_seed(0), key_value_layers(pipe.unet)

    def somebody() -> dict[str, LoRALayer] | None:
        found = {}
        for name, layer in layers.items():
            rank = int(torch.randint(0, 4, (), generator=draws))
            d_out, d_in = layer.get_parameter("weight").shape
            if rank:
                found[name] = LoRALayer(torch.full((rank, d_in), float("nan")), torch.randn(d_out, rank))
        return found or None

    people, buffers = [somebody() for _ in range(6)], LoRABuffers(layers, 3, 3)
    for _ in range(40):
        rows = [[*people, None][place] for place in torch.randint(7, (3,), generator=draws).tolist()]
        clean = LoRABuffers(layers, 3, 3).filled(rows)
        for name, pair in buffers.filled(rows).items():
            for found, expected in zip(pair, clean[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_row_that_was_torn_is_filled_anew(pipe: Any, subjects: list[Any]) -> None:
    layers = key_value_layers(pipe.unet)
    buffers, first = LoRABuffers(layers, 1, 3), subjects[0].unet_loras
    buffers.filled([first])
    name = next(iter(layers))
    with pytest.raises(RuntimeError):
        buffers.filled([{**subjects[1].unet_loras, name: LoRALayer(torch.ones(1, 7), torch.ones(7, 1))}])
    clean = LoRABuffers(layers, 1, 3).filled([first])
    assert all(torch.equal(pair[0], clean[key][0]) for key, pair in buffers.filled([first]).items())


def test_buffers_grow_for_larger_layers_and_others_are_drawn_alone(pipe: Any) -> None:
    shared = Together(pipe.unet, rank=1)
    layers = key_value_layers(pipe.unet)
    name = next(iter(layers))
    weight: Tensor = layers[name].get_parameter("weight")
    d_out, d_in = weight.shape
    wide = {name: LoRALayer(torch.randn(5, d_in), torch.randn(d_out, 5))}
    buffers = shared._buffers_for([wide, None])
    assert buffers is not None
    assert buffers.rank == 5
    elsewhere = {"conv_in": LoRALayer(torch.randn(1, 36), torch.randn(16, 1))}
    assert shared._buffers_for([elsewhere]) is None


def test_an_error_is_its_own_drawings(pipe: Any, subjects: list[Any]) -> None:
    def stops(*_args: Any) -> Any:
        raise RuntimeError("mine")

    calls = drawings(pipe, subjects)
    broken: Call = lambda: pipe("a dog", num_inference_steps=4, callback_on_step_end=stops)  # noqa: E731
    found = in_threads([calls[0], broken, calls[2]], Together(pipe.unet, wait_s=0.5))
    assert str(found[1]) == "mine"
    for one, call in ((found[0], calls[0]), (found[2], calls[2])):
        torch.testing.assert_close(one, call(), rtol=1e-4, atol=1e-4)


def test_a_call_that_fails_is_made_again_for_each_alone(pipe: Any, subjects: list[Any]) -> None:
    good, other = evaluation(pipe, subjects[0], 0, 500), evaluation(pipe, subjects[1], 1, 300)
    other.inputs = UNetInputs(other.inputs.encoder_hidden_states, loras=RowLoRAs(({"no_layer": object()}, None)))  # type: ignore[dict-item]
    shared = Together(pipe.unet)
    shared._call([good, other])
    assert good.result is not None
    assert other.error is not None


def test_too_many_rows_for_the_memory_are_halved(
    pipe: Any, subjects: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, most = module.call_alone, 4

    def small(unet: Any, x: Tensor, *rest: Any) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("too many")
        return real(unet, x, *rest)

    monkeypatch.setattr(module, "call_alone", small)
    asked = [evaluation(pipe, subjects[place % 3], place, 100) for place in range(4)]
    shared = Together(pipe.unet)
    shared._call(asked)
    assert shared.max_rows == 4
    assert [one.done for one in asked] == [False] * 4
    assert shared._waiting == asked
    shared._call(shared._chosen())
    assert [one.done for one in asked] == [True, True, False, False]


def test_users_take_turns_where_not_all_fit() -> None:
    shared = Together(SimpleNamespace(), max_rows=4)  # type: ignore[arg-type]
    unet, x = SimpleNamespace(), torch.zeros(1, 4, 8, 8)

    def ask(user: str, since: float) -> _Asked:
        step = Step(0, 1, torch.tensor(1), 0.5, 0.6)
        return _Asked(unet, x, step, UNetInputs(torch.zeros(1, 3, 4)), None, user, since)  # type: ignore[arg-type]

    shared._waiting = [ask("busy", 0.1 * place) for place in range(6)] + [ask("late", 1.0), ask("later", 2.0)]
    users = sorted(asked.user for asked in shared._chosen())
    assert users == ["busy", "busy", "late", "later"]
    assert len(shared._waiting) == 4
