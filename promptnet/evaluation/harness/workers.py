"""Generate images of every person with every method, in several processes, with a progress bar.

On a CPU, processes of one thread each are faster than one process with all threads: the model is small and its
operations are short. A person always goes to the same process, which keeps the person's subjects in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from promptnet.evaluation.harness.image_cache import ImageCache, Method, Unit
from promptnet.evaluation.harness.renderer import Generate, Renderer, image_size, settle_process
from promptnet.io.progress import counting_bar

Task = TypeVar("Task")


@dataclass(frozen=True)
class RendererSpec:
    """What a process needs to build its own renderer."""

    base: Path
    steps: int
    device: str = "cpu"
    keep: int = 8
    """Subjects kept in memory."""
    threads: int | None = None
    """Number of torch threads in a process of its own."""

    @property
    def size_px(self) -> int:
        """Return the side of the images in pixels."""
        return image_size(self.base)

    def build(self) -> Generate:
        """Build the renderer."""
        return Renderer(self.base, steps=self.steps, device=self.device, keep=self.keep, threads=self.threads)


def default_workers(device: str) -> int:
    """Return one process a thread on a CPU, at most four (each holds the model), and one on an accelerator."""
    import torch

    return min(4, torch.get_num_threads()) if device == "cpu" else 1


class WorkerPool:
    """Renderers in this process or in several, open as long as the `with` block.

    Args:
        spec: of each renderer.
        workers: number of processes; 1 is this one, None decides by the device.
        build: makes the renderer of this process.
    """

    def __init__(self, spec: RendererSpec, workers: int | None = None, build: Callable[[], Generate] | None = None):
        self.spec, self.build = spec, build or spec.build
        self.workers = (1 if build else default_workers(spec.device)) if workers is None else workers
        self._open = ExitStack()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def generate(
        self,
        people: Sequence[Unit],
        methods: Sequence[Method],
        image_cache: ImageCache,
        about: str = "",
        counting: str = "people",
    ) -> None:
        """Generate the images that the image cache lacks, with a progress bar.

        Args:
            people: the people, or other units of images.
            methods: for each of them.
            image_cache: where the images are stored.
            about: label of the progress bar.
            counting: unit of the progress bar.
        """
        waiting = [person for person in people if any(not image_cache.has(person, method) for method in methods)]
        done = (self._here if self.workers == 1 else self._in_processes)(waiting, methods, image_cache)
        already = len(people) - len(waiting)
        about = about or f"generating {len(methods)} methods"
        for _ in with_progress(done, total=len(people), already=already, about=about, counting=counting):
            pass

    def _here(self, people: Sequence[Unit], methods: Sequence[Method], image_cache: ImageCache) -> Iterator[None]:
        for person in people:
            yield generate_missing(self._renderer, person, methods, image_cache)

    def _in_processes(
        self, people: Sequence[Unit], methods: Sequence[Method], image_cache: ImageCache
    ) -> Iterator[None]:
        if not people:
            return
        tasks = [
            self._processes[person.index % self.workers].submit(_generate_in_process, person, methods, image_cache)
            for person in people
        ]
        yield from _as_done(tasks)

    @cached_property
    def _renderer(self) -> Generate:
        return self.build()

    @cached_property
    def _processes(self) -> list[ProcessPoolExecutor]:
        import torch

        spec = replace(self.spec, threads=max(1, torch.get_num_threads() // self.workers))
        # Spawned, not forked: torch's threads and CUDA do not survive a fork.
        start = {"mp_context": get_context("spawn"), "initializer": _start_process, "initargs": (spec,)}
        return [self._open.enter_context(ProcessPoolExecutor(1, **start)) for _ in range(self.workers)]


def each_in_processes(work: Callable[[Task], None], tasks: Sequence[Task], workers: int) -> Iterator[None]:
    """Run tasks in this process or in several, whichever is free; yield as each is done."""
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


def generate_missing(render: Generate, person: Unit, methods: Iterable[Method], image_cache: ImageCache) -> None:
    """Generate one person's missing images."""
    for method in methods:
        if not image_cache.has(person, method):
            image_cache.put(person, method, render(person, method))


_process_renderer: Generate | None = None


def _start_process(spec: RendererSpec) -> None:
    global _process_renderer
    _process_renderer = spec.build()


def _generate_in_process(person: Unit, methods: Sequence[Method], image_cache: ImageCache) -> None:
    assert _process_renderer is not None
    generate_missing(_process_renderer, person, methods, image_cache)


def with_progress(
    done: Iterable[None], *, total: int, already: int, about: str, counting: str = "people"
) -> Iterator[None]:
    """Yield what is done, and advance a progress bar with it."""
    with counting_bar(about, total, counting, already=already) as advance:
        for each in done:
            advance()
            yield each
