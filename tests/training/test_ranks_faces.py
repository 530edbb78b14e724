"""Two processes share a prepared set: each picture once an epoch between them, also through a kill, also streamed."""

import signal
from pathlib import Path

import pytest

from promptnet.training.ledger import read_ledger
from tests.datasets.conftest import write_shard
from tests.training.conftest import ROOT
from tests.training.forked import Runs
from tests.training.kill_run import COMPARED, differences, newest_step, state_at
from tests.training.test_pretrain import _write_base
from tests.training.test_ranks import CALLBACKS, assert_alike, start_ranks

NUM_PEOPLE, BATCH = 4, 3  # pictures of a process and step
CASES = {
    "cached": ("--data.init_args.features=[latents,vision]", "--data.init_args.num_validation=2"),
    "streamed": (
        "--data.init_args.features=[]",
        "--data.init_args.num_validation=0",
        "--data.init_args.window_shards=1",
        "--data.init_args.num_workers=1",
    ),
}
KILL = ("--trainer.callbacks+=tests.training.killer.KillAt", "--trainer.callbacks.step=5")
ROWS = "[sample, target_row, reference_row]"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_base(tmp_path_factory.mktemp("base"), "sd")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 8 pictures, six of each person."""
    folder = tmp_path_factory.mktemp("faces")
    for shard in range(3):
        write_shard(folder / f"{shard}.parquet", range(8 * shard, 8 * shard + 8), people=NUM_PEOPLE)
    return folder


def pretraining(runs: Runs, base: Path, faces: Path, *case: str):
    """Starts 6 steps of a shipped config on the tiny set, a checkpoint every 2."""

    def start(run_dir: Path, *options: str, environment: dict[str, str] | None = None) -> int:
        run_dir.mkdir(exist_ok=True)
        callbacks = CALLBACKS.replace("FOLDER", f"{run_dir / 'ledger'}, fields: {ROWS}")
        given = [f"--config={ROOT / 'configs/pretrain/sd15.yaml'}", f"--run_dir={run_dir}", "--threads=1"]
        given += [f"--model.init_args.base_dir={base}", f"--model.init_args.vision_id={base / 'vision'}"]
        given += [f"--model.init_args.export_dir={run_dir / 'encoder'}", "--model.init_args.warmup_steps=1"]
        given += ["--model.init_args.region_kernel_size=2", "--model.init_args.region_proj_channel=8"]
        given += [f"--data.init_args.data_dir={faces}", f"--data.init_args.cache_dir={run_dir.parent / 'cache'}"]
        given += ["--data.init_args.resolution_px=32", f"--data.init_args.batch_size={BATCH}"]
        given += ["--data.init_args.reference=same-identity", "--data.init_args.num_workers=0", *case]
        given += ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        given += ["--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=4"]
        given += [f"--trainer.callbacks={callbacks}"]
        return runs.start(run_dir / "log", "fit", *given, *options, environment=environment)

    return start


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


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_see_each_picture_once_an_epoch_between_them_and_go_on_exactly(
    name: str, runs: Runs, base: Path, faces: Path, tmp_path: Path
):
    start, num_rows = pretraining(runs, base, faces, *CASES[name]), 18 if name == "cached" else 24
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
