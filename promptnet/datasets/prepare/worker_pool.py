"""Parts made by several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptnet.datasets.prepare.image import Detect
from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.parts import Part, make_part
from promptnet.datasets.prepare.sources.base import Source

_POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """What every part of one preparation has in common."""

    sources: Sequence[Source]
    options: PrepareOptions
    folder: Path

    def detector(self) -> Detect | None:
        """What finds faces; a network of its own for each process."""
        if self.options.detector == "none":
            return None
        from promptnet.images.face_detection import FaceDetector

        # Faces of half the size wanted are sought too, so that they can be named as too small.
        return FaceDetector(self.options.smallest_face_px // 2).detect

    def make(self, part: Part, detect: Detect | None, tick: Callable[[], None]) -> None:
        """See `make_part`."""
        make_part(part, self.sources, self.options, self.folder, detect, tick)


def make_parts(job: Job, parts: Sequence[Part], workers: int, on_images: Callable[[int], None]) -> None:
    """Make parts, in this process or in `workers` others.

    Args:
        job: what they have in common.
        parts: those to make.
        workers: processes.
        on_images: is told now and then how many more images were looked at.

    Raises:
        OSError: the disk is full. Parts that were done stay.
        ValueError: a process died.
    """
    if workers == 1 or len(parts) < 2:
        detect = job.detector() if parts else None
        for part in parts:
            job.make(part, detect, lambda: on_images(1))
        return
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's dead threads
    counter, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(min(workers, len(parts)), context, _start, (job, counter, stop)) as pool:
        try:
            _wait_for(pool, parts, counter, on_images)
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died, perhaps for want of memory: repeat the command with fewer --workers; finished "
                "parts are kept"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(pool: ProcessPoolExecutor, parts: Sequence[Part], counter: Any, on_images: Callable[[int], None]) -> None:
    waiting = {pool.submit(_make, part) for part in parts}
    seen = 0
    while waiting:
        done, waiting = wait(waiting, _POLL_S, FIRST_EXCEPTION)
        on_images(counter.value - seen)
        seen = counter.value
        for future in done:
            future.result()


_detect: Detect | None
_job: Job
_counter: Any
_stop: Any


def _start(job: Job, counter: Any, stop: Any) -> None:
    """Of a worker process: what it needs for all its parts."""
    global _job, _detect, _counter, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and says stop
    _die_with_parent()
    if job.options.detector != "none":
        import torch

        torch.set_num_threads(1)
    _job, _detect, _counter, _stop = job, job.detector(), counter, stop


def _make(part: Part) -> None:
    _job.make(part, _detect, _count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1
    if _stop.is_set():
        raise InterruptedError("another part failed, or the user stopped the command")


def _die_with_parent() -> None:
    """A parent that is killed cannot stop its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
