"""An endless, exactly resumable order: which image comes when is a function of (seed, sample number) alone.

Sample number k counts every sample that training has seen, over all ranks and accumulation steps. Nothing about the
order is stored: to resume, start the stream at the number of samples seen so far. The same numbers seed everything
random about a sample (caption, augmentation, noise, timestep), so the outcome does not depend on how many processes
share the work or where a run was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import Sampler


def sample_seed(seed: int, sample: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one sample, independent over purposes and samples."""
    digest = hashlib.blake2b(f"{seed} {sample} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_rng(seed: int, sample: int, purpose: str) -> random.Random:
    """Python's generator for one purpose of one sample."""
    return random.Random(sample_seed(seed, sample, purpose))


def sample_noise(seed: int, samples: torch.Tensor, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise (B, *shape), row b a function of (seed, samples[b], purpose) alone; float32 on the CPU."""
    generator = torch.Generator()
    rows = [
        torch.randn(shape, generator=generator.manual_seed(sample_seed(seed, int(sample), purpose)))
        for sample in samples
    ]
    return torch.stack(rows)


def sample_uniform(seed: int, samples: torch.Tensor, purpose: str) -> torch.Tensor:
    """Uniform numbers (B,) in [0, 1), each a function of (seed, samples[b], purpose) alone; float32 on the CPU."""
    return torch.tensor([sample_rng(seed, int(sample), purpose).random() for sample in samples])


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sample_seed(seed, epoch, "order"))
    return torch.randperm(length, generator=generator)


def dataset_index(seed: int, sample: int, length: int) -> int:
    """Which item of a data set of `length` items is sample number `sample`: every epoch is one permutation."""
    epoch, position = divmod(sample, length)
    return int(_epoch_order(seed, epoch, length)[position])


class StreamBatches(Sampler[list[int]]):
    """Batches of sample numbers for one rank, without end.

    Batch i of all ranks together holds the samples start + i * batch_size * num_ranks onwards; rank r takes the r-th
    slice of `batch_size`.

    Args:
        batch_size: samples a batch and rank.
        rank: this process, 0 to num_ranks - 1.
        num_ranks: how many processes share the stream.
        start: samples seen before, over all ranks.
    """

    def __init__(self, batch_size: int, *, rank: int = 0, num_ranks: int = 1, start: int = 0) -> None:
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank={rank} is not in 0 to num_ranks - 1 = {num_ranks - 1}")
        if batch_size < 1 or start < 0:
            raise ValueError(f"batch_size={batch_size} must be at least 1 and start={start} at least 0")
        self.batch_size, self.rank, self.num_ranks, self.start = batch_size, rank, num_ranks, start

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.batch_size * self.num_ranks


class CountedSamples(L.LightningDataModule):
    """A data module whose checkpoints say how many samples the run has seen.

    Steps do not say it: a run may go on with other batches, another accumulation, or on more devices.
    """

    batch_size: int
    """A process and step."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = (0, 0)

    @property
    def samples_seen(self) -> int:
        """Over all ranks and batches, up to the last optimiser step."""
        step, seen = self._counted
        if self.trainer is None:
            return seen
        a_step = self.trainer.accumulate_grad_batches * self.batch_size * self.trainer.world_size
        return seen + (self.trainer.global_step - step) * a_step

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"step": self.trainer.global_step if self.trainer else 0, "samples_seen": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._counted = state_dict["step"], state_dict["samples_seen"]
