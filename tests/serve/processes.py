"""A service in processes of its own, which can be killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from promptnet.serve.database import WORKERS, open_database
from promptnet.serve.keys import Keys
from promptnet.serve.settings import Settings
from tests.serve.conftest import PLENTY, TINY

_CLI = "import sys; from promptnet.cli import main; sys.exit(main())"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Server:
    """`promptnet serve run`, and what kills it.

    Args:
        data: its folder.
        log: where it writes what it says.
        workers: how many.
    """

    data: Path
    log: Path
    workers: int = 1
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.data.mkdir(exist_ok=True)
        self.settings = Settings(base=str(TINY), data=self.data)
        self.engine = open_database(self.settings.database_url)
        self.secret, self.caller = Keys(self.engine).add(limits=PLENTY)

    def start(self) -> None:
        options = {"base": TINY, "data": self.data, "port": self.port, "metrics-port": self.metrics_port}
        options |= {"workers": self.workers, "threads": 1, "jobs-at-once": 4}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", _CLI, "serve", "run", *words]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secret}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)

    def wait_ready(self, seconds: float = 300) -> None:
        with self.client() as client:
            self.until(lambda: client.get("/readyz").status_code == 200, seconds)

    def until(self, true: Any, seconds: float = 300) -> None:
        """Wait; a server that is away is not true yet."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if true():
                    return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-3000:])

    def worker_pids(self) -> list[int]:
        """Those that said they are ready, and live."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(WORKERS.c.pid).where(WORKERS.c.ready)).scalars()
            return [pid for pid in rows if _lives(pid)]

    def kill_worker(self) -> None:
        """Kill a worker that is at work, once there is one."""
        self.until(self.worker_pids)
        os.kill(self.worker_pids()[0], signal.SIGKILL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """Ask it to stop; how long it took."""
        assert self.process is not None
        start = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - start

    def events(self) -> list[dict[str, Any]]:
        """Lines of the log."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def served(folder: Path, workers: int = 1) -> Iterator[Server]:
    """A server that is ready; killed at the end if it still runs."""
    server = Server(folder / "data", folder / "log", workers)
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
