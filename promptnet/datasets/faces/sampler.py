"""Which row comes when: functions of (seed, epoch, position) alone.

Sample number k is one of an endless count over all ranks, as in promptnet.datasets.stream. An order says which row k
is, so a run is resumed by counting on, and neither loader processes nor ranks change what is seen. In every order,
every row comes exactly once an epoch.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch.utils.data import Sampler

from promptnet.datasets.stream import StreamBatches, dataset_index, sample_seed

Size = tuple[int, int]  # width and height in pixels


class Order(Protocol):
    """What the data module asks of an order."""

    def row(self, sample: int) -> int:
        """The row that is sample number `sample`."""
        ...

    def ahead(self, sample: int) -> Sequence[int]:
        """Shards that will be wanted soon."""
        ...

    def batches(self, *, rank: int, num_ranks: int, start: int) -> Sampler[list[int]]:
        """One rank's batches of sample numbers, after `start` samples over all ranks."""
        ...


def permutation(seed: int, number: int, purpose: str, length: int) -> torch.Tensor:
    """Permutation `number` of 0 to length - 1 for one purpose."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(sample_seed(seed, number, purpose)))


class FullOrder:
    """Every epoch one permutation of the rows.

    Args:
        rows: those that take part.
        batch_size: a rank.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    def row(self, sample: int) -> int:
        """See `Order`."""
        return self.rows[dataset_index(self.seed, sample, len(self.rows))]

    def ahead(self, sample: int) -> Sequence[int]:
        """See `Order`."""
        return ()

    def batches(self, *, rank: int, num_ranks: int, start: int) -> Sampler[list[int]]:
        """See `Order`."""
        return StreamBatches(self.batch_size, rank=rank, num_ranks=num_ranks, start=start)


class WindowOrder:
    """For sets larger than the disk: shards in permuted order, their rows permuted over `window` shards at a time.

    Args:
        shard_rows: rows of each shard.
        window: shards whose rows are mixed; so many, and the next so many, must be kept at hand.
        batch_size: a rank.
        seed: of the order.
    """

    def __init__(self, shard_rows: Sequence[int], window: int, batch_size: int, *, seed: int) -> None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1")
        self.shard_rows, self.window, self.batch_size = list(shard_rows), window, batch_size
        self.starts, self.seed = [0, *accumulate(shard_rows)], seed
        self._windows = functools.lru_cache(maxsize=2)(self._windows_of)
        self._rows = functools.lru_cache(maxsize=2)(self._rows_of)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_windows", "_rows")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._windows = functools.lru_cache(maxsize=2)(self._windows_of)
        self._rows = functools.lru_cache(maxsize=2)(self._rows_of)

    def _windows_of(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """The epoch's windows of shards, and the position at which each begins."""
        shards = permutation(self.seed, epoch, "shards", len(self.shard_rows)).tolist()
        windows = [shards[i : i + self.window] for i in range(0, len(shards), self.window)]
        return windows, [0, *accumulate(sum(self.shard_rows[shard] for shard in window) for window in windows)]

    def _rows_of(self, epoch: int, number: int) -> list[int]:
        """The rows of one window in their order."""
        shards = self._windows(epoch)[0][number]
        rows = [row for shard in shards for row in range(self.starts[shard], self.starts[shard + 1])]
        order = permutation(self.seed, epoch, f"window {number}", len(rows))
        return [rows[place] for place in order.tolist()]

    def _place(self, sample: int) -> tuple[int, int, int]:
        """Epoch, window, and place in the window."""
        epoch, position = divmod(sample, self.starts[-1])
        begins = self._windows(epoch)[1]
        number = bisect_right(begins, position) - 1
        return epoch, number, position - begins[number]

    def row(self, sample: int) -> int:
        """See `Order`."""
        epoch, number, place = self._place(sample)
        return self._rows(epoch, number)[place]

    def ahead(self, sample: int) -> Sequence[int]:
        """The next window's shards, from the middle of this window on."""
        epoch, number, place = self._place(sample)
        windows, begins = self._windows(epoch)
        if 2 * place < begins[number + 1] - begins[number]:
            return ()
        return windows[number + 1] if number + 1 < len(windows) else self._windows(epoch + 1)[0][0]

    def batches(self, *, rank: int, num_ranks: int, start: int) -> Sampler[list[int]]:
        """See `Order`."""
        return StreamBatches(self.batch_size, rank=rank, num_ranks=num_ranks, start=start)


class BucketOrder:
    """Batches of one size: every epoch, each bucket's rows are permuted and cut into batches, and these permuted.

    The last batch of a bucket may be smaller than the others. Batch number b holds sample numbers from
    b * batch_size on, so a smaller one leaves numbers unused; no row is left out or repeated in an epoch.

    Args:
        buckets: (width, height) -> rows.
        batch_size: a rank.
        seed: of the order.
    """

    def __init__(self, buckets: dict[Size, list[int]], batch_size: int, *, seed: int) -> None:
        self.buckets = {size: rows for size, rows in sorted(buckets.items()) if rows}
        self.batch_size, self.seed = batch_size, seed
        self.rows = [row for rows in self.buckets.values() for row in rows]
        self.num_batches = sum(-(-len(rows) // batch_size) for rows in self.buckets.values())
        self._epoch: tuple[int, list[list[int]]] | None = None

    def _batches_of(self, epoch: int) -> list[list[int]]:
        """The rows of each of the epoch's batches."""
        if self._epoch is None or self._epoch[0] != epoch:
            cut = []
            for (width_px, height_px), rows in self.buckets.items():
                order = permutation(self.seed, epoch, f"bucket {width_px}x{height_px}", len(rows)).tolist()
                shuffled = [rows[place] for place in order]
                cut += [shuffled[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            order = permutation(self.seed, epoch, "batches", len(cut)).tolist()
            self._epoch = (epoch, [cut[place] for place in order])
        return self._epoch[1]

    def batch_rows(self, batch: int) -> list[int]:
        """The rows of global batch number `batch`."""
        epoch, number = divmod(batch, self.num_batches)
        return self._batches_of(epoch)[number]

    def row(self, sample: int) -> int:
        """See `Order`."""
        batch, place = divmod(sample, self.batch_size)
        return self.batch_rows(batch)[place]

    def ahead(self, sample: int) -> Sequence[int]:
        """See `Order`."""
        return ()

    def batches(self, *, rank: int, num_ranks: int, start: int) -> Sampler[list[int]]:
        """See `Order`."""
        return _BucketBatches(self, rank, num_ranks, start // self.batch_size)


class _BucketBatches(Sampler[list[int]]):
    def __init__(self, order: BucketOrder, rank: int, num_ranks: int, first_batch: int) -> None:
        self.order, self.rank, self.num_ranks, self.first_batch = order, rank, num_ranks, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.first_batch + self.rank
        while True:
            first = batch * self.order.batch_size
            yield list(range(first, first + len(self.order.batch_rows(batch))))
            batch += self.num_ranks


def nearest_size(width_px: int, height_px: int, sizes: Sequence[Size]) -> Size:
    """The size whose shape is closest to an image's, by the ratio of the aspect ratios."""

    def distance(size: Size) -> float:
        ratio = (size[0] * height_px) / (size[1] * width_px)
        return max(ratio, 1 / ratio)

    return min(sizes, key=lambda size: (distance(size), size))
