"""Progress bars and spinners of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from promptnet.io.progress import measuring_bar

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
def sampling_bar(pipe: PromptNetPipeline, message: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Show a bar on stderr in place of the pipeline's own; yield a `callback_on_step_end` that advances it."""
    pipe.set_progress_bar_config(disable=True)
    with measuring_bar(message) as advance:

        def after_step(running: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            advance(step + 1, running.num_timesteps)
            return values

        yield after_step


@contextmanager
def tuning_bar(message: str) -> Iterator[Callable[[TuningProgress], None]]:
    """Show a bar on stderr; yield a callback of per-user tuning that advances it."""
    with measuring_bar(message) as advance:
        yield lambda tuning: advance(tuning.step, tuning.num_steps)
