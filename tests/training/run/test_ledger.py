"""The ledger keeps what a run's checkpoints keep: what a killed process did beyond them is left out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.run.ledger import SampleLedger, read_ledger


def write(folder: Path, *, at_step: int, batches: int, accumulate: int = 1) -> None:
    """What a process writes that goes on from a step and is killed after so many batches."""
    ledger = SampleLedger(str(folder), ["sample"])
    trainer = SimpleNamespace(global_rank=0, global_step=at_step, accumulate_grad_batches=accumulate)
    ledger.on_train_start(trainer, None)
    first = at_step * accumulate
    for batch in range(first, first + batches):
        ledger.on_train_batch_end(trainer, None, None, {"sample": torch.tensor([2 * batch, 2 * batch + 1])}, 0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_was_lost_and_done_again_counts_once(accumulate: int, tmp_path: Path):
    write(tmp_path, at_step=0, batches=5 * accumulate, accumulate=accumulate)
    write(tmp_path, at_step=2, batches=1, accumulate=accumulate)
    write(tmp_path, at_step=2, batches=4 * accumulate, accumulate=accumulate)
    samples = [number for entry in read_ledger(tmp_path / "rank-0.jsonl") for number in entry["sample"]]
    assert samples == list(range(2 * 6 * accumulate))


@pytest.mark.parametrize("left", ['{"batch": 3, "sam', '{"batch": 3, "sample": [6, 7]'])
def test_a_line_cut_off_by_a_kill_is_no_entry(left: str, tmp_path: Path):
    write(tmp_path, at_step=0, batches=3)
    with open(tmp_path / "rank-0.jsonl", "a") as file:
        file.write(left)
    assert len(read_ledger(tmp_path / "rank-0.jsonl")) == 3
    write(tmp_path, at_step=2, batches=2)
    assert [entry["batch"] for entry in read_ledger(tmp_path / "rank-0.jsonl")] == [0, 1, 2, 3]


def test_a_missing_batch_is_an_error(tmp_path: Path):
    write(tmp_path, at_step=0, batches=2)
    write(tmp_path, at_step=3, batches=1)
    with pytest.raises(ValueError, match="batch 3 follows 2 batches"):
        read_ledger(tmp_path / "rank-0.jsonl")
