"""Two processes share a prepared set: each image once an epoch between them, also through a kill, also streamed."""

import signal
from pathlib import Path

import pytest

from tests.training.forked import Runs
from tests.training.pretrain.face_runs import BATCH, face_pretraining
from tests.training.run.kill_run import COMPARED, differences, newest_step, state_at
from tests.training.run.ledger import read_ledger
from tests.training.run.ranks import assert_alike, start_ranks

CASES = {
    "cached": ("--data.init_args.features=[latents,vision]", "--data.init_args.num_validation=2"),
    "streamed": (
        "--data.init_args.features=[]",
        "--data.init_args.num_validation=0",
        "--data.init_args.window_shards=1",
        "--data.init_args.num_workers=1",
    ),
}
KILL = ("--trainer.callbacks+=tests.training.run.killer.KillAt", "--trainer.callbacks.step=5")


def whole_epochs(run_dir: Path, num_rows: int) -> list[list[set[int]]]:
    """Epoch by epoch, as far as they were finished, which rows each of the two processes was served."""
    ledgers = [read_ledger(run_dir / f"ledger/rank-{rank}.jsonl") for rank in range(2)]
    assert [len(ledger) for ledger in ledgers] == [6, 6]
    steps = num_rows // (2 * BATCH)  # of an epoch
    shares = [[ledger[first : first + steps] for first in range(0, 6 - steps + 1, steps)] for ledger in ledgers]
    return [
        [{row for entry in share for row in entry["target_row"]} for share in both]
        for both in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "cached" else []) for name in CASES]
)
def test_two_ranks_see_each_image_once_an_epoch_between_them_and_go_on_exactly(
    name: str, runs: Runs, face_base: Path, faces: Path, tmp_path: Path
):
    start, num_rows = face_pretraining(runs, face_base, faces, *CASES[name]), 18 if name == "cached" else 24
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [runs.wait(pid) for pid in start_ranks(runs, whole, start)] == [0, 0], (whole / "log").read_text()[-3000:]
    epochs = whole_epochs(whole, num_rows)
    assert len(epochs) == 36 // num_rows
    for first, second in epochs:
        assert len(first) == len(second) == num_rows // 2
        assert len(first | second) == num_rows
        assert first | second == epochs[0][0] | epochs[0][1]

    codes = [runs.wait(pid) for pid in start_ranks(runs, killed, start, *KILL)]
    assert -signal.SIGKILL in codes, (killed / "log").read_text()[-3000:]
    assert newest_step(killed) == 4
    assert [runs.wait(pid) for pid in start_ranks(runs, killed, start)] == [0, 0], (killed / "log").read_text()[-3000:]
    expected, found = state_at(whole, 6), state_at(killed, 6)
    assert [line for part in COMPARED for line in differences(expected[part], found[part], part)] == []
    for rank in range(2):
        ledgers = [read_ledger(folder / f"ledger/rank-{rank}.jsonl") for folder in (whole, killed)]
        assert ledgers[0] == ledgers[1]

    if name == "cached":
        alone = ("--trainer.accumulate_grad_batches=2", "--trainer.devices=1", "--trainer.val_check_interval=8")
        assert runs.wait(start(tmp_path / "one", *alone)) == 0, (tmp_path / "one/log").read_text()[-3000:]
        assert_alike(tmp_path / "one", whole, step=6)
