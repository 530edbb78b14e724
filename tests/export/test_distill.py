"""Distilled exports predict more like the subject than mean words do."""

from typing import Any

import pytest
import torch

from promptnet.export.distillation import DistillConfig, distill, num_rounds
from promptnet.export.static_words import mean_static
from promptnet.inference.subject.lora import key_value_layers

FEW = DistillConfig(steps=30, batch_size=4, num_images=3, drawing_steps=6, learning_rate=1e-2, prompts=("a S*",))


@pytest.mark.parametrize("family", ["sd-v", "sdxl"])
def test_distilled_words_and_lora_are_nearer_to_the_subject(
    pipes: dict[str, Any], make_subject: Any, family: str
) -> None:
    pipe, subject = pipes[family], make_subject(pipes[family])
    rounds: list[None] = []
    found = distill(pipe, subject, FEW, on_step=lambda: rounds.append(None))
    assert len(rounds) == num_rounds(FEW)
    assert found.recipe["static"] == "distilled"
    assert found.recipe["loss_after"] < found.recipe["loss_before"]
    start = mean_static(pipe, subject)
    assert not torch.equal(found.words, start.words)
    assert {name: lora.shape for name, lora in found.loras.items()} == {n: d.shape for n, d in start.loras.items()}


def test_an_untuned_subject_gets_a_lora(pipes: dict[str, Any], make_subject: Any) -> None:
    pipe = pipes["sd"]
    found = distill(pipe, make_subject(pipe, tuned=False), FEW)
    assert set(found.loras) == set(key_value_layers(pipe.unet))
    assert found.rank == FEW.rank


def test_the_same_seed_distils_the_same(pipes: dict[str, Any], make_subject: Any) -> None:
    one, other = (distill(pipes["sd"], make_subject(pipes["sd"]), FEW) for _ in range(2))
    assert torch.equal(one.words, other.words)


def test_what_does_not_help_is_not_kept(pipes: dict[str, Any], make_subject: Any) -> None:
    config = DistillConfig(steps=3, num_images=2, drawing_steps=2, learning_rate=100.0, prompts=("a S*",))
    found = distill(pipes["sd"], make_subject(pipes["sd"]), config)
    assert found.recipe["static"] == "mean"
    assert torch.equal(found.words, mean_static(pipes["sd"], make_subject(pipes["sd"])).words)


def test_networks_keep_no_gradients(pipes: dict[str, Any], make_subject: Any) -> None:
    distill(pipes["sd"], make_subject(pipes["sd"]), FEW)
    assert all(weight.grad is None for weight in pipes["sd"].unet.parameters())


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_images"):
        DistillConfig(num_images=1)
