"""The schedule and the grouping of parameters."""

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import nn

from promptnet.training.stage import Stage, build_optimizer, learning_rate_factor


def factors(schedule: str) -> list[float]:
    return [
        learning_rate_factor(schedule, step, warmup_steps=10, num_steps=100, decay_fraction=0.4)  # type: ignore[arg-type]
        for step in range(101)
    ]


def test_trapezoid_rises_stays_and_falls_to_zero():
    found = factors("trapezoid")
    assert found[0] == 0.1
    assert found[9] == found[59] == 1.0
    assert found[80] == 0.5
    assert found[100] == 0.0
    assert all(before >= after for before, after in itertools.pairwise(found[60:]))


def test_constant_rises_and_stays():
    assert factors("constant")[:3] == [0.1, 0.2, 0.3]
    assert set(factors("constant")[9:]) == {1.0}


def test_cosine_rises_and_falls_to_zero():
    found = factors("cosine")
    assert found[0] == 0.1
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.5)
    assert found[100] == pytest.approx(0.0)
    assert all(before >= after for before, after in itertools.pairwise(found[10:]))


def test_unknown_schedules_and_optimisers_are_refused_and_a_missing_extra_is_named():
    with pytest.raises(ValueError, match="schedule='linear'"):
        factors("linear")
    with pytest.raises(ValueError, match="optimizer='sgd'"):
        build_optimizer("sgd", [], 1.0, (0.9, 0.9))  # type: ignore[arg-type]


def test_the_8_bit_optimiser_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"promptnet\[8bit\]"):
        build_optimizer("adamw8bit", [{"params": [nn.Parameter(torch.ones(1))]}], 1.0, (0.9, 0.9))


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


def decayed_names(stage: _Small) -> list[str]:
    stage.trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()  # type: ignore[assignment]
    decayed, _ = stage.configure_optimizers()["optimizer"].param_groups
    names = {id(value): name for name, value in stage.named_parameters()}
    return [names[id(value)] for value in decayed["params"]]


def test_what_fsdp_has_made_flat_decays_as_before(two_ranks: None):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    stage = _Small()
    assert decayed_names(stage) == ["linear.weight"]
    stage.setup("fit")
    policy: dict[str, Any] = {"auto_wrap_policy": ModuleWrapPolicy({nn.Linear}), "use_orig_params": True}
    FullyShardedDataParallel(stage, device_id=torch.device("cpu"), **policy)
    assert {value.ndim for value in stage.parameters()} == {1}
    assert decayed_names(stage) == ["linear._fsdp_wrapped_module.weight"]
