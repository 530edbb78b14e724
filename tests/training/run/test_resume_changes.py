"""Options that change between a run and its repetition: what the command says holds, or is refused."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from promptnet.training.stage import Stage
from tests.training.tiny_run import TinyData, TinyStage


class Rates(L.Callback):
    """Notes what the optimiser was told at each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[float], list[float], tuple[float, float]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        groups = optimizer.param_groups
        rates, decays = ([group[name] for group in groups] for name in ("lr", "weight_decay"))
        self.steps.append((rates, decays, tuple(groups[0]["betas"])))


def fit(place: Path, max_steps: int, ckpt: Path | None = None, **options: Any) -> tuple[Any, Rates]:
    """Train the tiny stage to `max_steps`; the trainer and what its optimiser was told."""
    rates = Rates()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(max_steps=max_steps, accelerator="cpu", callbacks=[rates], default_root_dir=str(place), **quiet)
    given: dict[str, Any] = {"width": 8, "pause_s": 0.0, "warmup_steps": 2, "weight_decay": 0.1, "schedule": "cosine"}
    trainer.fit(TinyStage(**given | options), TinyData(num_workers=0), ckpt_path=ckpt, weights_only=True)
    return trainer, rates


@pytest.fixture(scope="module")
def at_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of 4 steps of 4."""
    place = tmp_path_factory.mktemp("four")
    trainer, _ = fit(place, 4)
    trainer.save_checkpoint(place / "four.ckpt")
    return place / "four.ckpt"


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 3e-4},
        {"weight_decay": 0.7},
        {"betas": (0.8, 0.95)},
        {"warmup_steps": 7},
        {"schedule": "trapezoid", "decay_share": 0.9},
        {"schedule": "constant"},
        {},
    ],
    ids=lambda options: "-".join(options) or "max_steps",
)
def test_a_resumed_run_trains_as_its_command_says(options: dict[str, Any], at_four: Path, tmp_path: Path):
    _, whole = fit(tmp_path, 9, **options)
    _, resumed = fit(tmp_path, 9, at_four, **options)
    assert len(resumed.steps) == 5
    assert resumed.steps == whole.steps[4:]  # to the last bit, the first step included


def test_the_schedule_of_a_fresh_run_is_that_of_its_settings(tmp_path: Path):
    trainer, rates = fit(tmp_path, 9, learning_rate=0.5)
    stage: Stage = trainer.lightning_module
    assert [rates for rates, _, _ in rates.steps] == [[0.5 * stage.rate_factor(step, 9)] * 2 for step in range(9)]
    assert rates.steps[3][1] == [0.1, 0.0]


def test_adams_averages_outlive_another_rate(at_four: Path, tmp_path: Path):
    saved = torch.load(at_four, weights_only=True)["optimizer_states"][0]["state"]
    trainer, _ = fit(tmp_path, 5, at_four, learning_rate=0.0)
    state = trainer.optimizers[0].state_dict()["state"]
    assert {int(each["step"]) for each in state.values()} == {5}
    assert {int(each["step"]) for each in saved.values()} == {4}
