"""Progress bars and spinners of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from promptnet import PromptNetPipeline
    from promptnet.inference.tuning.config import TuningProgress


@contextmanager
def status(message: str) -> Iterator[None]:
    """Show a spinner on stderr while something without countable steps runs."""
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield


@contextmanager
def counting_bar(message: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; yield a callback that takes what is done and how much there is."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(message, total=None)

        def advance(done: int, number: int) -> None:
            progress.update(task, completed=done, total=number)

        yield advance


@contextmanager
def sampling_bar(pipe: PromptNetPipeline, message: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Show a bar on stderr in place of the pipeline's own; yield a `callback_on_step_end` that advances it."""
    pipe.set_progress_bar_config(disable=True)
    with counting_bar(message) as advance:

        def after_step(running: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            advance(step + 1, running.num_timesteps)
            return values

        yield after_step


@contextmanager
def tuning_bar(message: str) -> Iterator[Callable[[TuningProgress], None]]:
    """Show a bar on stderr; yield a callback of per-user tuning that advances it."""
    with counting_bar(message) as advance:
        yield lambda tuning: advance(tuning.step, tuning.num_steps)
