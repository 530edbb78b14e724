"""Runs of train.py as forks of one process that has imported everything: real processes, started in no time.

Importing Lightning and torch takes most of a short run's time, and the tests of resuming need many runs. The process
that forks must not compute, as a fork takes no threads along; so it is one of its own, and `Runs` speaks to it.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WARM = (
    "tensorboard.summary.writer.event_file_writer",
    "promptnet.datasets.avatars.module",
    "promptnet.training.cli",
    "promptnet.training.pretrain.stage",
    "promptnet.training.embedded.encoder",
    "promptnet.training.embedded.unet",
    "tests.training.tiny_run",
)
TINY = Path(__file__).with_name("tiny_run.yaml")


class Runs:
    """Starts runs, and waits for them. A context manager: leaving it ends what it started."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", "from tests.training.forked import serve; serve()"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        self._running: set[int] = set()

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._running):
            self.kill(pid)
        self._server.kill()
        self._server.wait()

    def start(self, log: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> int:
        """`train.py <arguments>` with its output in `log`; the process's number."""
        pid = self._ask({"arguments": arguments, "log": str(log), "environment": dict(environment or {})})
        self._running.add(pid)
        return pid

    def start_tiny(self, run_dir: Path, *options: str, environment: Mapping[str, str] | None = None) -> int:
        """A run of tests/training/tiny_run.yaml, its ledger and log in the run's folder."""
        run_dir.mkdir(parents=True, exist_ok=True)
        given = ("fit", f"--config={TINY}", f"--run_dir={run_dir}", f"--trainer.callbacks.folder={run_dir / 'ledger'}")
        return self.start(run_dir / "log", *given, *options, environment=environment)

    def poll(self, pid: int) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        code = self._ask({"poll": pid})
        if code is not None:
            self._running.discard(pid)
        return code

    def wait(self, pid: int, timeout_s: float = 500) -> int:
        """Exit status.

        Raises:
            TimeoutError: it runs still; it is killed.
        """
        deadline = time.monotonic() + timeout_s
        while (code := self.poll(pid)) is None:
            if time.monotonic() > deadline:
                self.kill(pid)
                raise TimeoutError(f"process {pid} was still running after {timeout_s} s")
            time.sleep(0.01)
        return code

    def wait_for(self, condition: Callable[[], bool], pid: int, timeout_s: float = 500) -> None:
        """Wait until something is so.

        Raises:
            TimeoutError: it did not come to be.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or not Path(f"/proc/{pid}").exists():
                raise TimeoutError(f"process {pid} did not get there in {timeout_s} s")
            time.sleep(0.001)

    def kill(self, pid: int) -> int:
        """`kill -9` of the process alone: its loader workers are left to find out. Its exit status."""
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def torchrun_rank(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells each of its processes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    return {name: str(number) for name, number in numbers.items()} | {
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


# --- the process that forks ---------------------------------------------------------------------------------------


def serve() -> None:
    """Answer questions from standard input until it ends."""
    _warm()
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            done, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        else:
            answer = _fork(question)
        print(json.dumps(answer), flush=True)


def _warm() -> None:
    for name in WARM:
        importlib.import_module(name)


def _fork(question: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _enter(Path(question["log"]), question["environment"])
            code = _train(question["arguments"])
        finally:
            os._exit(code)
    return pid


def _enter(log: Path, environment: dict[str, str]) -> None:
    """Become a process as a shell starts one: a group and a log of its own, nothing inherited that matters."""
    atexit._clear()
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    if "MAX_FILE_BYTES" in environment:  # a disk that is full after so much of one file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["MAX_FILE_BYTES"]), resource.RLIM_INFINITY))


def _train(arguments: list[str]) -> int:
    """What `python train.py <arguments>` does; its exit status."""
    import traceback

    from promptnet.training.cli import main

    sys.argv = ["train.py", *arguments]
    code = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code
