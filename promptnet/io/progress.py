"""A progress bar for long work that can be counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting_bar(about: str, total: int, counting: str, *, already: int = 0) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr; yield a function that advances it by one.

    Args:
        about: label of the bar.
        total: number of items.
        counting: unit, for example "batches".
        already: number of items done before.
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

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(counting))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(about, total=total, completed=already)
        yield lambda: progress.advance(task)
