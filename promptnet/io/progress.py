"""The one progress bar, for all long work that can be counted: on stderr, with what is done, of how much, and the time.

rich is imported where a bar is made, so that commands start quickly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def new_bar(*texts: str, transient: bool = False) -> Any:
    """Return a bar that nobody has started yet, a `rich.progress.Progress`.

    Args:
        texts: behind the numbers, such as "batches" or "loss {task.fields[loss]}".
        transient: take it away at the end.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, texts))
    console = Console(stderr=True)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=transient)


@contextmanager
def measuring_bar(about: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar that goes away at the end; yield a function that takes what is done and how much there is.

    Args:
        about: label of the bar.
    """
    with new_bar(transient=True) as progress:
        task = progress.add_task(about, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


@contextmanager
def counting_bar(about: str, total: int, counting: str, *, already: int = 0) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr; yield a function that advances it by one.

    Args:
        about: label of the bar.
        total: number of items.
        counting: unit, for example "batches".
        already: number of items done before.
    """
    with new_bar(counting) as progress:
        task = progress.add_task(about, total=total, completed=already)
        yield lambda: progress.advance(task)
