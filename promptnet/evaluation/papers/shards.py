"""Shards: a table's images shared out among processes that know nothing of each other but the folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """One of several equal processes.

    Args:
        index: from 0.
        count: of all.
    """

    index: int = 0
    count: int = 1

    def has(self, unit: int) -> bool:
        """Return whether a unit is this process's own."""
        return unit % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Parse I/N, from 1/N to N/N.

    Raises:
        ValueError: the text has another form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"--shard '{text}' must be I/N with I from 1 to N, such as 2/8")
    return Shard(index - 1, count)


def launched_shard() -> Shard | None:
    """Return the shard of a process that torchrun or accelerate launched; None for a single one."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None or int(world) == 1:
        return None
    return Shard(int(rank), int(world))


def choose_shard(text: str | None) -> Shard:
    """Return the shard that the command line or the launcher says; alone there is one.

    Raises:
        ValueError: both say something.
    """
    launched = launched_shard()
    if text is None:
        return launched or Shard()
    if launched is not None:
        raise ValueError(f"--shard {text} and a launch of {launched.count} processes: the launcher says the shard")
    return parse_shard(text)


def local_device(device: str) -> str:
    """Return the device of a launched process: of several GPUs its own, where "cuda" names none."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device
