"""Repeating a finished training says so at once; what is missing of its end is done, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from promptnet.training.run.finished import FILE_NAME, Finished, export_of, read_finished
from promptnet.training.run.trainer import RunTrainer
from tests.training.forked import Runs
from tests.training.run.kill_run import newest_step, step_reached
from tests.training.tiny_run import TinyData, TinyStage

SIX = ("--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=3")


def log(run_dir: Path) -> str:
    return (run_dir / "log").read_text()


def files(run_dir: Path) -> dict[str, int]:
    kept = [path for path in run_dir.rglob("*") if path.is_file() and path.name not in ("log", "run.lock")]
    return {str(path): path.stat().st_mtime_ns for path in kept}


def test_a_finished_run_is_not_trained_again(runs: Runs, tmp_path: Path):
    assert runs.wait(runs.start_tiny(tmp_path, *SIX)) == 0, log(tmp_path)[-2000:]
    assert read_finished(tmp_path) == Finished(6, None)
    before, done = files(tmp_path), step_reached(tmp_path)
    assert runs.wait(runs.start_tiny(tmp_path, *SIX)) == 0
    assert f"{tmp_path} is finished at step 6" in log(tmp_path)
    assert (files(tmp_path), step_reached(tmp_path)) == (before, done)
    fewer = ("--trainer.max_steps=3", *SIX[1:])
    assert runs.wait(runs.start_tiny(tmp_path, *fewer)) == 0  # done, too

    assert runs.wait(runs.start_tiny(tmp_path, *SIX, "--redo_end")) == 0
    assert step_reached(tmp_path) > done
    assert runs.wait(runs.start_tiny(tmp_path, "--trainer.max_steps=8", *SIX[1:])) == 0
    assert newest_step(tmp_path) == 8
    assert read_finished(tmp_path) == Finished(8, None)

    (tmp_path / FILE_NAME).unlink()
    assert runs.wait(runs.start_tiny(tmp_path, *fewer)) == 1
    assert "train.py: the run has 8 steps behind it, more than --trainer.max_steps 3" in log(tmp_path)


def test_an_outcome_that_is_gone_or_goes_elsewhere_is_made(tmp_path: Path):
    done = Finished(6, str(tmp_path / "encoder"))
    assert not done.covers(6, done.exported)
    (tmp_path / "encoder").mkdir()
    assert not done.covers(6, done.exported)  # an empty folder is no encoder
    (tmp_path / "encoder/model.safetensors").touch()
    assert done.covers(6, done.exported)
    assert not done.covers(7, done.exported)
    assert not done.covers(-1, done.exported)
    assert not done.covers(6, str(tmp_path / "other"))
    card = Finished(6, str(tmp_path / "card.safetensors"))
    (tmp_path / "card.safetensors").touch()
    assert card.covers(6, card.exported)


def test_a_torn_note_is_no_end(tmp_path: Path):
    assert read_finished(tmp_path) is None
    Finished(6, "x").write(tmp_path)
    assert read_finished(tmp_path) == Finished(6, "x")
    (tmp_path / FILE_NAME).write_text('{"step": 6')
    assert read_finished(tmp_path) is None
    assert export_of({"init_args": {"out": "card"}}) == "card"
    assert export_of({"class_path": "x"}) is None


class Exporting(TinyStage):
    """Writes at its end."""

    exported: torch.Tensor | None = None

    def on_train_end(self) -> None:
        self.exported = next(self.parameters()).detach().clone()


def fit(place: Path, ckpt: Path | None) -> Any:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    averaging = EMAWeightAveraging(decay=0.5)
    trainer = RunTrainer(max_steps=3, accelerator="cpu", callbacks=[averaging], default_root_dir=str(place), **quiet)
    torch.manual_seed(0)
    stage = Exporting(width=8, pause_s=0.0, warmup_steps=1)
    trainer.fit(stage, TinyData(num_workers=0), ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_run_killed_behind_its_last_checkpoint_writes_its_outcome(attempts: int, tmp_path: Path):
    """With one checkpoint there is none to train the last steps from: only what comes after them is missing."""
    whole = fit(tmp_path, None)
    before = whole.lightning_module.exported
    whole.save_checkpoint(tmp_path / "3.ckpt")
    for _ in range(attempts):
        again = fit(tmp_path, tmp_path / "3.ckpt/state.ckpt")
        assert again.global_step == 3
        assert torch.equal(again.lightning_module.exported, before)
