"""The benchmarks of training run, on shapes so small that their figures mean nothing."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from promptnet.datasets.avatars.module import PairDataModule, pixels_of
from tests.training.conftest import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Name -> the module of a benchmark, as `python benchmarks/<name>.py` finds it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmark"])

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def noting(order: list[str], name: str, called: Any) -> Any:
    """The same function, which also notes that it was called."""

    def both(*given: Any) -> Any:
        order.append(name)
        return called(*given)

    return both


def test_both_trainers_are_timed_in_either_order_on_random_weights(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pretrain = script("pretrain")
    order: list[str] = []
    for name in ("ours", "straightforward"):
        called = getattr(pretrain, name)
        monkeypatch.setattr(
            pretrain, name, lambda *given, name=name, called=called: order.append(name) or called(*given)
        )
    read: list[str] = []
    plain_step = pretrain.StraightforwardTrainer.step

    def step(self: Any, batch: dict[str, Any]) -> None:
        read.extend(batch)
        plain_step(self, batch)

    monkeypatch.setattr(pretrain.StraightforwardTrainer, "step", step)
    given = ["--shape=tiny", "--steps=1", "--warmup=1", "--pairs=2", "--images=8"]
    options = ["--data.init_args.batch_size=2", "--data.init_args.num_workers=0", "--trainer.accelerator=cpu"]
    pretrain.main([*given, *options])
    assert order == ["ours", "straightforward", "straightforward", "ours"]
    assert set(read) == {"reference", "target", "prompt"}  # images, and nothing precomputed
    printed = capsys.readouterr().out
    assert "at the shape of tiny with random weights" in printed
    assert re.search(r"ratio +\d+\.\d+ ", printed)


@pytest.mark.parametrize("as_published", [False, True])
def test_the_straightforward_trainer_is_given_pairs_of_avatars_as_images(
    as_published: bool, script: Any, tmp_path: Path
):
    module = PairDataModule(as_published, num_images=2, num_validation=2, size_px=16, cache_dir=str(tmp_path))
    module.setup()
    read = script("pretrain").RawPairs(module.train)[1]
    assert read["reference"].shape == (3, 16, 16)
    assert set(read) == {"reference", "prompt"} if as_published else {"reference", "prompt", "target"}
    shown = "reference" if as_published else "target"
    assert (read[shown] == pixels_of(module.rendered("train").pixels(1))).all()


def test_the_memory_of_a_step_is_predicted_and_measured(script: Any, capsys: pytest.CaptureFixture[str]):
    memory = script("pretrain_memory")
    memory.main(["--config", str(Path("configs/pretrain/tiny-table.yaml")), "--precision=32-true", "--steps=1"])
    printed = capsys.readouterr().out
    assert "together" in printed
    assert re.search(r"measured on (cpu: .*peak resident memory of the whole process|cuda: )", printed)


def test_the_memory_of_learning_an_edit_is_measured_and_forecast(script: Any, capsys: pytest.CaptureFixture[str]):
    small = {"shape": "tiny", "size": None, "device": "cpu", "steps": [1, 2], "whole_steps": 1, "pairs": 1}
    mixing, arguments = script("mixing"), argparse.Namespace(**small, forecast=4)
    mixing.table(arguments)
    mixing.times(arguments)
    printed = capsys.readouterr().out
    assert "peak of 2 steps less their latents against 1" in printed
    assert "4 steps take" in printed
    differ = re.search(r"gradients differ by (\S+)", printed)
    assert differ is not None
    assert float(differ[1]) < 1e-3
    assert re.search(r"time recomputed / whole graph: \d+\.\d+", printed)
