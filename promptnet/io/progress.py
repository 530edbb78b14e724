"""A bar for what takes long and can be counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting_bar(about: str, total: int, counting: str, *, already: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on stderr; yields what moves it by one.

    Args:
        about: what is being done.
        total: how many there are.
        counting: of what, for example "batches".
        already: how many were done before.
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
