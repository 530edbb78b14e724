"""A checkpoint under its final name is whole, whatever happens while it is written."""

import os
from pathlib import Path

import pytest
import torch

from promptnet.training.checkpoints import AtomicCheckpointIO, newest_checkpoint


def test_a_checkpoint_round_trips_and_leaves_no_draft(tmp_path: Path):
    path = tmp_path / "step=1.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(5)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(5))
    assert os.listdir(tmp_path) == ["step=1.ckpt"]


def test_a_failing_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_newest_checkpoint_is_found_and_drafts_are_not(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path) is None
    folder.mkdir()
    for age, name in ((30, "epoch=0-step=9.ckpt"), (20, "epoch=0-step=10.ckpt"), (10, ".epoch=0-step=11.ckpt.7.draft")):
        (folder / name).touch()
        os.utime(folder / name, (1_000_000 - age, 1_000_000 - age))
    assert newest_checkpoint(tmp_path) == folder / "epoch=0-step=10.ckpt"
