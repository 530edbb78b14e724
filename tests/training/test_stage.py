"""The schedule and the grouping of parameters."""

import itertools

import torch
from torch import nn

from promptnet.training.stage import Stage, trapezoid


def test_trapezoid_rises_stays_and_falls_to_zero():
    factors = [trapezoid(step, warmup_steps=10, num_steps=100, decay_share=0.4) for step in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[59] == 1.0
    assert factors[80] == 0.5
    assert factors[100] == 0.0
    assert all(before >= after for before, after in itertools.pairwise(factors[60:]))


class _Small(Stage):
    def __init__(self) -> None:
        super().__init__(weight_decay=0.3)
        self.linear, self.token_embedding, self.norm = nn.Linear(3, 2), nn.Embedding(4, 3), nn.LayerNorm(3)
        self.frozen_layer = nn.Linear(2, 2).requires_grad_(False)


def test_only_matrices_decay_and_frozen_parameters_stay_out():
    stage = _Small()
    stage.trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()  # type: ignore[assignment]
    decayed, others = stage.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.3
    assert others["weight_decay"] == 0.0
    assert [tuple(value.shape) for value in decayed["params"]] == [(2, 3)]
    assert sorted(tuple(value.shape) for value in others["params"]) == [(2,), (3,), (3,), (4, 3)]
    assert torch.is_tensor(stage.frozen_layer.weight)
