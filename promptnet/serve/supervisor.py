"""Keeps the worker processes alive: one that dies is started again in its slot, which gives its jobs back to it."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from promptnet.serve.logs import log
from promptnet.serve.settings import Settings

_START = "from promptnet.serve.worker_process import main; main()"
_LOOK_S = 0.1
_STOP_S = 9.0
_QUICK_S = 10.0  # a worker that dies sooner is started again only after a while
_MOST_PAUSE_S = 10.0


@dataclass
class _Slot:
    number: int
    process: subprocess.Popen[bytes]
    started_s: float
    pause_s: float = 0.0
    died_s: float | None = None


class Supervisor:
    """The workers of one server.

    Args:
        settings: handed to them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._slots: list[_Slot] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the workers, and look after them from now on."""
        now = time.monotonic()
        self._slots = [_Slot(number, self._spawn(number), now) for number in range(self.settings.workers)]
        self._thread.start()

    def stop(self) -> None:
        """Let the workers end the step they are at; kill those that do not within the time."""
        self._stopping.set()
        self._thread.join()
        deadline_s = time.monotonic() + _STOP_S
        for slot in self._slots:
            slot.process.terminate()
        for slot in self._slots:
            try:
                slot.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                slot.process.kill()
                slot.process.wait()
                log("worker killed", slot=str(slot.number))

    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [slot.process.pid for slot in self._slots if slot.process.poll() is None]

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", _START], stdin=subprocess.PIPE)
        assert process.stdin is not None
        told = json.dumps({"settings": self.settings.to_json(), "slot": number})
        try:
            process.stdin.write(told.encode() + b"\n")
            process.stdin.flush()  # and it stays open: its end tells the worker that we are gone
        except BrokenPipeError:
            pass  # it died at once, which is seen below
        log("worker started", slot=str(number), pid=process.pid)
        return process

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            for slot in self._slots:
                self._look_after(slot, time.monotonic())

    def _look_after(self, slot: _Slot, now_s: float) -> None:
        if slot.process.poll() is None:
            return
        if slot.died_s is None:
            slot.died_s = now_s
            quick = now_s - slot.started_s < _QUICK_S
            slot.pause_s = min(_MOST_PAUSE_S, max(0.5, 2 * slot.pause_s)) if quick else 0.0
            log("worker died", slot=str(slot.number), status=slot.process.returncode)
        if now_s - slot.died_s >= slot.pause_s:
            slot.process, slot.started_s, slot.died_s = self._spawn(slot.number), now_s, None
