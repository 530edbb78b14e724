"""Features computed before a training: by all ranks together, with a bar, and left off where the run is to stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from promptnet.datasets.faces.features import Chunk, Encode, FeatureCache, fill, num_batches
from promptnet.io.progress import counting_bar
from promptnet.training.run.saving import leave_if_asked

Pixels = Callable[[int, bool], torch.Tensor]


def fill_together(trainer: Any, cache: FeatureCache, pixels: Pixels, encode: Encode) -> None:
    """Compute the features that are missing, all ranks together; on machines that share no disk, each its own.

    After every batch the ranks agree whether to go on, so that a signal to any of them ends all of them within a
    batch. What is computed by then stays, up to the last whole chunk.

    Raises:
        RunInterrupted: a rank was asked to stop.
    """
    for rank, num_ranks in ((trainer.global_rank, trainer.world_size), (trainer.local_rank, trainer.num_devices)):
        missing = _missing(trainer, cache)
        trainer.strategy.barrier()  # nobody writes before all have looked
        _fill_share(trainer, cache, pixels, encode, missing[rank::num_ranks])
        trainer.strategy.barrier()


def _missing(trainer: Any, cache: FeatureCache) -> list[Chunk]:
    """The chunks to compute. Whoever has not seen a shard yet fetches it here, to learn what is in it."""
    for shard in range(len(cache.store.shards)):
        cache.store.content(shard)
        leave_if_asked(trainer)
    return cache.missing()


def _fill_share(trainer: Any, cache: FeatureCache, pixels: Pixels, encode: Encode, share: list[Chunk]) -> None:
    own = num_batches(share)
    rounds = _largest(trainer, own)  # every rank asks as often as the one with the most to do
    with _bar(trainer, rounds, f"computing {cache.kind}") as advance:

        def after_batch() -> None:
            leave_if_asked(trainer)
            advance()

        fill(cache, pixels, encode, share, after_batch=after_batch)
        for _ in range(rounds - own):
            after_batch()


def _largest(trainer: Any, number: int) -> int:
    if trainer.world_size == 1:
        return number
    device = trainer.strategy.root_device
    return int(trainer.strategy.reduce(torch.tensor(number, device=device), reduce_op="max"))


def _bar(trainer: Any, total: int, about: str) -> AbstractContextManager[Callable[[], None]]:
    """A bar on the first rank, unless the trainer shows none either; gives what moves it."""
    if total and trainer.is_global_zero and trainer.progress_bar_callback is not None:
        return counting_bar(about, total, "batches")
    return nullcontext(lambda: None)
