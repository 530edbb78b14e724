"""A run's folder: one process at a time, its own checkpoints alone, and a full disk costs no more than one save."""

import os
import shutil
import signal
from pathlib import Path

import torch

from tests.training.conftest import FORTY
from tests.training.forked import Runs
from tests.training.run.kill_run import compare, drafts, newest_step, state_at, step_reached


def log(run_dir: Path) -> str:
    return (run_dir / "log").read_text()


def test_a_second_process_is_refused_and_harms_nothing(runs: Runs, whole_run: Path, tmp_path: Path):
    first = runs.start_tiny(tmp_path, *FORTY)
    runs.wait_for(lambda: step_reached(tmp_path) >= 2, first)
    os.kill(first, signal.SIGSTOP)  # alive, and not over before the second one gets there
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY)) == 1
    os.kill(first, signal.SIGCONT)
    assert f"train.py: {tmp_path} is in use by process {first} on" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert runs.wait(first) == 0
    compare(whole_run, tmp_path, step=40)


def test_a_full_disk_is_told_and_costs_one_save(runs: Runs, whole_run: Path, tmp_path: Path):
    pid = runs.start_tiny(tmp_path, *FORTY)
    runs.wait_for(lambda: newest_step(tmp_path) >= 10, pid)
    assert runs.kill(pid) == -signal.SIGKILL
    before = newest_step(tmp_path)
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY, environment={"MAX_FILE_BYTES": "1000000"})) == 1
    assert "train.py: cannot write the checkpoint" in log(tmp_path)
    assert "MB are free there" in log(tmp_path)
    assert newest_step(tmp_path) == before
    assert not drafts(tmp_path)
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY)) == 0
    compare(whole_run, tmp_path, step=40)


def test_a_checkpoint_of_the_earlier_format_is_resumed(runs: Runs, whole_run: Path, tmp_path: Path):
    """That format was one bare file, and Lightning's own callback had written it."""
    state = state_at(whole_run, 30)
    state["callbacks"]["ModelCheckpoint{'monitor': None}"] = {"best_model_path": "somewhere/epoch=0-step=30.ckpt"}
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints/epoch=0-step=30.ckpt")
    shutil.copytree(whole_run / "ledger", tmp_path / "ledger")
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY)) == 0, log(tmp_path)[-2000:]
    assert "epoch=0-step=30.ckpt was written by an earlier version" in log(tmp_path)
    compare(whole_run, tmp_path, step=40)


def test_a_checkpoint_from_elsewhere_is_refused(runs: Runs, whole_run: Path, tmp_path: Path):
    other = whole_run / "checkpoints/step=40.ckpt/state.ckpt"
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY, f"--ckpt_path={other}")) == 1
    assert "is not in this run's folder" in log(tmp_path)
