"""What one call of a pipeline has for itself, though threads may share the pipeline: a scheduler, a stop."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_RUNNING: ContextVar["OwnCall | None"] = ContextVar("promptnet_own_call", default=None)
_ALL: list["OwnCall"] = []
_LOCK = threading.Lock()


@dataclass(eq=False)
class OwnCall:
    """A call that is running.

    Args:
        pipe: whose call it is.
        scheduler: the pipeline's, copied: its timesteps and its memory of earlier steps are this call's.
        interrupted: whether to stop after this step.
        num_timesteps: steps of this call.
    """

    pipe: Any
    scheduler: Any
    interrupted: bool = False
    num_timesteps: int = 0


@contextmanager
def own_call(pipe: Any) -> Iterator[OwnCall]:
    """For the length of the block, this thread runs a call of the pipeline."""
    call = OwnCall(pipe, own_scheduler(pipe.scheduler))
    token = _RUNNING.set(call)
    with _LOCK:
        _ALL.append(call)
    try:
        yield call
    finally:
        with _LOCK:
            _ALL.remove(call)
        _RUNNING.reset(token)


def own_scheduler(scheduler: Any) -> Any:
    """A copy that steps on its own; large tables, which nobody writes to, are shared."""
    memo = {id(value): value for value in vars(scheduler).values() if isinstance(value, Tensor)}
    return copy.deepcopy(scheduler, memo)


def running_call() -> OwnCall | None:
    """The call that runs in this thread."""
    return _RUNNING.get()


def interrupt(pipe: Any, value: bool) -> None:
    """Stop this thread's call of a pipeline, from inside it (a callback); from outside, all its calls."""
    own = _RUNNING.get()
    with _LOCK:
        for call in [own] if own is not None and own.pipe is pipe else _ALL:
            if call is not None and call.pipe is pipe:
                call.interrupted = value
