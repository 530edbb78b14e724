"""Drawing every row for every person, with progress, in as many processes as pay.

On a CPU, processes of one thread each draw faster than one process with all threads: the model is small and its
operations are short. A person always goes to the same process, which keeps the person's subjects.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from promptnet.evaluation.harness.image_cache import Drawing, Gallery, Unit
from promptnet.evaluation.harness.renderer import Draw, Studio, picture_size, settle_process
from promptnet.io.progress import counting_bar

Task = TypeVar("Task")


@dataclass(frozen=True)
class StudioSpec:
    """What a process needs to build its own studio."""

    base: Path
    steps: int
    device: str = "cpu"
    keep: int = 8
    """Subjects that stay in memory."""
    threads: int | None = None
    """For a process of its own: what torch may use there."""

    @property
    def size_px(self) -> int:
        """Side of the pictures."""
        return picture_size(self.base)

    def build(self) -> Draw:
        """The studio."""
        return Studio(self.base, steps=self.steps, device=self.device, keep=self.keep, threads=self.threads)


def default_workers(device: str) -> int:
    """One process a thread on a CPU, four at most (each holds the model); one on an accelerator."""
    import torch

    return min(4, torch.get_num_threads()) if device == "cpu" else 1


class Crew:
    """Studios in this process or in several, for as long as the `with` block lasts.

    Args:
        spec: of each studio.
        workers: processes; 1 draws in this one, None decides by the device.
        build: makes the studio when drawing in this process.
    """

    def __init__(self, spec: StudioSpec, workers: int | None = None, build: Callable[[], Draw] | None = None):
        self.spec, self.build = spec, build or spec.build
        self.workers = (1 if build else default_workers(spec.device)) if workers is None else workers
        self._open = ExitStack()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def draw(
        self,
        people: Sequence[Unit],
        rows: Sequence[Drawing],
        gallery: Gallery,
        about: str = "",
        counting: str = "people",
    ) -> None:
        """Draw what the gallery does not hold yet, with a progress bar.

        Args:
            people: whom, or what else is drawn together.
            rows: how.
            gallery: where the pictures are kept.
            about: what the progress bar says.
            counting: what it counts.
        """
        waiting = [person for person in people if any(not gallery.has(person, row) for row in rows)]
        done = (self._here if self.workers == 1 else self._in_processes)(waiting, rows, gallery)
        already = len(people) - len(waiting)
        about = about or f"drawing {len(rows)} rows"
        for _ in with_progress(done, total=len(people), already=already, about=about, counting=counting):
            pass

    def _here(self, people: Sequence[Unit], rows: Sequence[Drawing], gallery: Gallery) -> Iterator[None]:
        for person in people:
            yield draw_missing(self._studio, person, rows, gallery)

    def _in_processes(self, people: Sequence[Unit], rows: Sequence[Drawing], gallery: Gallery) -> Iterator[None]:
        if not people:
            return
        tasks = [
            self._processes[person.index % self.workers].submit(_draw_in_process, person, rows, gallery)
            for person in people
        ]
        yield from _as_done(tasks)

    @cached_property
    def _studio(self) -> Draw:
        return self.build()

    @cached_property
    def _processes(self) -> list[ProcessPoolExecutor]:
        import torch

        spec = replace(self.spec, threads=max(1, torch.get_num_threads() // self.workers))
        # Spawned, not forked: torch's threads and CUDA do not survive a fork.
        start = {"mp_context": get_context("spawn"), "initializer": _start_process, "initargs": (spec,)}
        return [self._open.enter_context(ProcessPoolExecutor(1, **start)) for _ in range(self.workers)]


def each_in_processes(work: Callable[[Task], None], tasks: Sequence[Task], workers: int) -> Iterator[None]:
    """Do tasks in this process or in several, whichever is free; yields as each is done."""
    if workers == 1 or not tasks:
        for task in tasks:
            yield work(task)
        return
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    start = {"mp_context": get_context("spawn"), "initializer": settle_process, "initargs": (threads,)}
    with ProcessPoolExecutor(workers, **start) as pool:
        yield from _as_done([pool.submit(work, task) for task in tasks])


def _as_done(tasks: Sequence[Future[None]]) -> Iterator[None]:
    try:
        for task in as_completed(tasks):
            yield task.result()
    finally:
        for task in tasks:
            task.cancel()


def draw_missing(draw: Draw, person: Unit, rows: Iterable[Drawing], gallery: Gallery) -> None:
    """Draw one person's missing rows."""
    for row in rows:
        if not gallery.has(person, row):
            gallery.put(person, row, draw(person, row))


_process_studio: Draw | None = None


def _start_process(spec: StudioSpec) -> None:
    global _process_studio
    _process_studio = spec.build()


def _draw_in_process(person: Unit, rows: Sequence[Drawing], gallery: Gallery) -> None:
    assert _process_studio is not None
    draw_missing(_process_studio, person, rows, gallery)


def with_progress(
    done: Iterable[None], *, total: int, already: int, about: str, counting: str = "people"
) -> Iterator[None]:
    """Hand on what is done, with a bar that moves with it."""
    with counting_bar(about, total, counting, already=already) as advance:
        for each in done:
            advance()
            yield each
