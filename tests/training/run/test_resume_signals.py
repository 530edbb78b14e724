"""Asked to stop, a run saves what it has and leaves with status 75; repeated, it goes on as if nothing had happened."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from promptnet.training.run.preemption import EXIT_INTERRUPTED
from tests.training.conftest import FORTY
from tests.training.forked import Runs
from tests.training.run.kill_run import compare, drafts, newest_step, step_reached

LIMIT_S = 10


def validations(run_dir: Path) -> list[str]:
    log = run_dir / "log"
    return re.findall(r"validated at step \d+: \S+", log.read_text() if log.exists() else "")


def stop(runs: Runs, pid: int, *signals: signal.Signals) -> None:
    """Send signals one after the other; the run has to leave in time."""
    sent = time.monotonic()
    for which in signals:
        os.kill(pid, which)
    assert runs.wait(pid) == EXIT_INTERRUPTED
    assert time.monotonic() - sent < LIMIT_S


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
    ids=["SIGTERM", "several"],
)
def test_a_run_that_is_stopped_saves_its_last_step(
    signals: tuple[signal.Signals, ...], runs: Runs, whole_run: Path, tmp_path: Path
):
    pid = runs.start_tiny(tmp_path, *FORTY)
    runs.wait_for(lambda: step_reached(tmp_path) >= 12, pid)
    stop(runs, pid, *signals)
    assert newest_step(tmp_path) == step_reached(tmp_path) >= 12  # nothing that was done is lost
    assert not drafts(tmp_path)
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY)) == 0
    compare(whole_run, tmp_path, step=40)


def test_a_signal_to_every_process_of_the_job_finds_the_workers_at_work(runs: Runs, whole_run: Path, tmp_path: Path):
    pid = runs.start_tiny(tmp_path, *FORTY)
    runs.wait_for(lambda: step_reached(tmp_path) >= 3, pid)
    sent = time.monotonic()
    os.killpg(pid, signal.SIGTERM)  # as a scheduler does
    assert runs.wait(pid) == EXIT_INTERRUPTED, (tmp_path / "log").read_text()[-2000:]
    assert time.monotonic() - sent < LIMIT_S
    assert newest_step(tmp_path) == step_reached(tmp_path)


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_a_validation_cut_short_is_begun_anew_with_the_right_weights(
    how: str, runs: Runs, whole_run: Path, tmp_path: Path
):
    every = [*FORTY, "--checkpoint.every_n_train_steps=25"]
    pid = runs.start_tiny(tmp_path, *(every if how == "killed" else FORTY), "--model.init_args.slow_validation_s=3")
    runs.wait_for(lambda: step_reached(tmp_path) == 25, pid)
    time.sleep(1)
    if how == "asked":
        stop(runs, pid, signal.SIGTERM)
    else:
        runs.kill(pid)
    assert newest_step(tmp_path) == 25
    assert validations(tmp_path) == []
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY)) == 0
    assert validations(tmp_path) == validations(whole_run) != []
    compare(whole_run, tmp_path, step=40)


def test_a_validation_that_takes_long_to_end_is_left_too(runs: Runs, whole_run: Path, tmp_path: Path):
    pid = runs.start_tiny(tmp_path, *FORTY, "--model.init_args.slow_end_s=3")
    runs.wait_for(lambda: validations(tmp_path) != [], pid)
    stop(runs, pid, signal.SIGTERM)
    assert newest_step(tmp_path) == 25
    assert runs.wait(runs.start_tiny(tmp_path, *FORTY)) == 0
    assert validations(tmp_path) == 2 * validations(whole_run)
    compare(whole_run, tmp_path, step=40)
