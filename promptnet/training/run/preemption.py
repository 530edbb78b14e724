"""Being asked to stop: SIGTERM, SIGINT or SIGUSR1 become a wish, granted where training has a state worth saving."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75
"""Exit status of a run that was asked to stop and has saved: repeat the command (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class RunInterrupted(SystemExit):
    """The run was asked to stop; its state is saved."""

    def __init__(self, code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(code)


class StopSignals:
    """Takes the signals while it is installed, and remembers that one came. Further ones change nothing.

    A scheduler signals every process of a job. The data loader's workers, forked in the meantime, are needed until the
    step is done: they heed their parent alone.
    """

    _installed = 0  # how many, in this process
    _hooked = False

    def __init__(self) -> None:
        self.requested = False
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take the signals over (in the main thread; elsewhere Python cannot)."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._pid = os.getpid()
            self._previous = {which: signal.signal(which, self._note) for which in SIGNALS}
            StopSignals._installed += 1
            if not StopSignals._hooked and hasattr(signal, "sigwaitinfo"):
                os.register_at_fork(after_in_child=_heed_parent_alone)
                StopSignals._hooked = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        if not self._previous:
            return
        for which, handler in self._previous.items():
            signal.signal(which, handler)
        self._previous = {}
        StopSignals._installed -= 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid and not self.requested:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this step, then stopping\n".encode())
        self.requested = True

    def agreed(self, trainer: Any) -> bool:
        """Whether any rank was asked to stop; every rank gets the same answer, so all have to ask."""
        if trainer.world_size == 1:
            return self.requested
        return trainer.strategy.reduce_boolean_decision(self.requested, all=False)


def _heed_parent_alone() -> None:
    """In a forked process: leave at a SIGTERM from the parent, and at no other.

    torch's workers set a handler of their own when they start, which leaves at any; so the signal is blocked, and a
    thread waits for it.
    """
    if not StopSignals._installed:
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="heeds the parent").start()


class NoSignalConnector:
    """Stands where a Lightning trainer keeps its own signal handlers, and installs none.

    Lightning's SIGTERM handler starts a collective from within the signal, in the middle of whatever other collective
    is under way, and its SLURM handler saves in the middle of a step.
    """

    received_sigterm = False

    def register_signal_handlers(self) -> None:
        """Leave the signals as they are."""

    def teardown(self) -> None:
        """Nothing to give back."""


def exit_code(trainer: Any) -> int:
    """Status to leave with. A rank that Lightning has started itself leaves with 0, or its observer kills the first."""
    launcher = trainer.strategy.launcher
    launched = launcher is not None and not trainer.strategy.cluster_environment.creates_processes_externally
    return 0 if launched and trainer.local_rank > 0 else EXIT_INTERRUPTED
