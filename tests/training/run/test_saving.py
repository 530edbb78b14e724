"""When a run saves and what it keeps; tests/training/run/test_resume_signals.py has real runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from promptnet.training.run.saving import SaveState
from tests.training.run.test_checkpoints import damage, write


class Recorder(SimpleNamespace):
    """A trainer that takes steps, and writes checkpoints without a state."""

    def __init__(self, run_dir: Path, **given: Any) -> None:
        strategy = SimpleNamespace(broadcast=lambda path: given.get("rank_0_path"))
        super().__init__(run_dir=run_dir, global_step=0, max_steps=10, world_size=1, global_rank=1, is_global_zero=True)
        self.strategy, self.ckpt_path, self.callbacks = strategy, given.get("ckpt_path"), []

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert not weights_only
        write(self.run_dir, int(path.stem.removeprefix("step=")))


def take_steps(saving: SaveState, trainer: Recorder, number: int, batches_each: int = 1) -> None:
    for _ in range(number):
        for batch in range(batches_each):
            trainer.global_step += batch == batches_each - 1
            saving.on_train_batch_end(trainer, None, None, None, 0)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("batches_each", [1, 3])
def test_it_saves_every_few_steps_and_at_the_last_and_keeps_two(batches_each: int, tmp_path: Path):
    saving, trainer = SaveState(str(tmp_path / "checkpoints"), every_n_train_steps=4), Recorder(tmp_path)
    saving.on_train_start(trainer, None)
    take_steps(saving, trainer, 8, batches_each)
    assert names(tmp_path) == ["step=4.ckpt", "step=8.ckpt"]
    take_steps(saving, trainer, 2, batches_each)
    assert names(tmp_path) == ["step=10.ckpt", "step=8.ckpt"]


def test_what_it_cannot_read_it_does_not_remove(tmp_path: Path):
    damage(write(tmp_path, 90))
    (write(tmp_path, 91) / "manifest.json").write_text("nonsense")
    (tmp_path / "checkpoints/epoch=0-step=92.ckpt").write_bytes(b"of the earlier format")
    saving, trainer = SaveState(str(tmp_path / "checkpoints"), every_n_train_steps=1, keep=1), Recorder(tmp_path)
    saving.on_train_start(trainer, None)
    take_steps(saving, trainer, 3)
    assert names(tmp_path) == ["epoch=0-step=92.ckpt", "step=3.ckpt", "step=91.ckpt"]


def test_ranks_that_would_go_on_from_different_checkpoints_are_refused(tmp_path: Path):
    trainer = Recorder(tmp_path, ckpt_path="step=8.ckpt", rank_0_path="step=4.ckpt")
    with pytest.raises(ValueError, match=r"rank 1 goes on from step=8\.ckpt, rank 0 from step=4\.ckpt"):
        SaveState(str(tmp_path)).on_train_start(trainer, None)


@pytest.mark.parametrize("wrong", [{"every_n_train_steps": 0}, {"keep": 0}])
def test_numbers_below_one_are_refused(wrong: dict[str, int], tmp_path: Path):
    with pytest.raises(ValueError, match="must be at least 1"):
        SaveState(str(tmp_path), **wrong)
