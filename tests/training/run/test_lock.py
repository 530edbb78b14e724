"""One run per folder, and none lost to a process that died."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptnet.training.run.lock import LOCK, Owner, RunLock, RunTakenError, process_start

HOLDER = """
import sys
sys.path.insert(0, sys.argv[2])
from promptnet.training.run.lock import RunLock
RunLock(sys.argv[1]).take()
print("taken", flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that has taken the run."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(ROOT)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_run_is_refused_by_name_and_a_killed_one_taken_over(holder: subprocess.Popen, tmp_path: Path):
    with pytest.raises(RunTakenError, match=rf"in use by process {holder.pid} on \S+, which took it at .*--run_dir"):
        RunLock(tmp_path).take()
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path)
    lock.take()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_run_that_ends_leaves_the_lock_free(holder: subprocess.Popen, tmp_path: Path):
    holder.communicate("")
    assert (tmp_path / LOCK).read_text() == ""
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()
    assert (tmp_path / LOCK).read_text() == ""


def test_another_hosts_run_is_refused_and_the_way_out_named(tmp_path: Path):
    there = dataclasses.replace(Owner.this_process(), host="elsewhere", job="")
    (tmp_path / LOCK).write_text(json.dumps(dataclasses.asdict(there)))
    with pytest.raises(RunTakenError, match=r"on elsewhere.*cannot tell.*remove .*run\.lock"):
        RunLock(tmp_path).take()


def test_words_cut_off_by_a_crash_hold_nothing(tmp_path: Path):
    (tmp_path / LOCK).write_text('{"pid": 12, "ho')
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_a_number_used_again_is_not_the_old_process():
    me = Owner.this_process()
    assert not me.is_gone(me)
    assert dataclasses.replace(me, started=me.started - 1).is_gone(me)
    assert process_start(2**22 + 1) is None
    assert dataclasses.replace(me, pid=2**22 + 1).is_gone(me)


def test_a_requeued_job_takes_its_earlier_start_over_from_another_host():
    me = dataclasses.replace(Owner.this_process(), job="31", restarts=1)
    before = dataclasses.replace(me, host="node-7", restarts=0)
    assert before.is_gone(me)
    assert not me.is_gone(before)  # the later start is no less alive for the earlier one's asking
    assert not dataclasses.replace(before, job="30").is_gone(me)
    assert not dataclasses.replace(before, job="").is_gone(dataclasses.replace(me, job=""))
