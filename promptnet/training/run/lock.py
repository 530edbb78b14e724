"""One run per folder: a lock that a dead process does not keep."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

LOCK = "run.lock"


class RunTakenError(ValueError):
    """Another process trains in this folder; the message says which, and what to do."""


@dataclass(frozen=True)
class Owner:
    """Who holds a run.

    Args:
        pid: process number on `host`.
        host: name of the machine.
        started: when the process started, in clock ticks after the machine did; pids are used again.
        since: when the run was taken, for people.
        job: number of the SLURM job, if there is one.
        restarts: how often SLURM has restarted that job.
    """

    pid: int
    host: str
    started: int
    since: str
    job: str = ""
    restarts: int = 0

    @classmethod
    def this_process(cls) -> Owner:
        """The process that asks."""
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(os.getpid(), socket.gethostname(), process_start(os.getpid()) or 0, since, job, restarts)

    def is_gone(self, asking: Owner) -> bool:
        """Whether this owner is surely dead: a dead process of this host, or an earlier start of the same job."""
        if self.host == asking.host:
            return process_start(self.pid) != self.started
        return bool(self.job) and self.job == asking.job and self.restarts < asking.restarts


def process_start(pid: int) -> int | None:
    """Start of a process in clock ticks after boot; None if there is no such process, 0 where no /proc says."""
    try:
        # The name, in parentheses, may hold spaces; after it the state is field 3 and the start field 22.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return 0 if not Path("/proc/self/stat").exists() and _is_alive(pid) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class RunLock:
    """The lock of a run's folder, for its first rank.

    The file says who holds the run; an empty one says nobody. Beside that it is locked as POSIX locks files, which the
    system undoes at the process's death (and which a forked loader worker does not inherit): on the same host, that
    decides. What the file says decides where the file system has no locks, or where another host wrote it.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir, LOCK)
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the run, also from a process that is dead.

        Raises:
            RunTakenError: its owner lives, or runs on another host, where nobody here can tell.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        try:
            self._check(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._write(json.dumps(asdict(Owner.this_process())))
        atexit.register(self.release)

    def release(self) -> None:
        """Give the run free; the file stays, empty, so that nobody locks one that is about to be deleted."""
        if self._file is not None:
            self._write("")
            self._file.close()
            self._file = None

    def _check(self, file: IO[str]) -> None:
        locked = _lock(file)
        owner, me = _read(file), Owner.this_process()
        if locked is False or (owner and not (locked and owner.host == me.host) and not owner.is_gone(me)):
            raise RunTakenError(self._message(owner, me))

    def _message(self, owner: Owner | None, me: Owner) -> str:
        if owner is None:
            return f"{self.path.parent} is in use by another process; give this run another --run_dir"
        who = f"process {owner.pid} on {owner.host}, which took it at {owner.since}"
        if owner.host == me.host:
            return f"{self.path.parent} is in use by {who}; stop that one first, or give this run another --run_dir"
        return (
            f"{self.path.parent} is held by {who}, and {me.host} cannot tell whether that process still runs; stop it, "
            f"or, if it is gone, remove {self.path}"
        )

    def _write(self, text: str) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


def _lock(file: IO[str]) -> bool | None:
    """True: locked. False: somebody else has it. None: this file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _read(file: IO[str]) -> Owner | None:
    """Who the file says holds the run; None for nobody, or for words cut off by a crash."""
    file.seek(0)
    try:
        return Owner(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None
