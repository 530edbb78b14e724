"""`kill -9` at random moments, and while saving: what comes out is bit for bit what an uninterrupted run gives."""

import random
from pathlib import Path

import pytest

from tests.training.forked import Runs
from tests.training.run import kill_run


@pytest.mark.slow
def test_killed_anywhere_and_repeated_is_bit_identical(runs: Runs, tmp_path: Path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"python tests/training/run/kill_run.py --kills 3 --seed {seed}")
    outcome = kill_run.run(runs, tmp_path, kills=3, seed=seed)
    print(outcome)
    assert len(outcome.at_random) + len(outcome.while_saving) >= 4, outcome


def test_the_comparison_can_fail():
    state = {"a": [kill_run.torch.zeros(2), 1.0]}
    assert kill_run.differences(state, {"a": [kill_run.torch.zeros(2), 1.0]}) == []
    assert kill_run.differences(state, {"a": [kill_run.torch.tensor([0.0, 1e-30]), 1.0]}) == ["/a/0"]
    assert kill_run.differences(state, {"b": 1})
    assert kill_run.differences(state, {"a": [kill_run.torch.zeros(2)]})


@pytest.mark.parametrize("change", ["twice", "gap", "late"])
def test_the_ledgers_check_can_fail(change: str):
    orders = [random.Random(epoch).sample(range(60), 60) for epoch in range(2)]
    entries = [{"sample": [k], "index": [orders[k // 60][k % 60]]} for k in range(120)]
    kill_run.check_epochs(entries)
    if change == "twice":
        entries[7] = {"sample": [7], "index": entries[6]["index"]}
    elif change == "gap":
        del entries[9]
    else:
        entries[3], entries[4] = entries[4], entries[3]
    with pytest.raises(AssertionError):
        kill_run.check_epochs(entries)
