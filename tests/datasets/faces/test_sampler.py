"""Every order: every row once an epoch, the same for any number of ranks, resumable anywhere."""

import pickle
from collections.abc import Callable
from itertools import islice

import pytest

from promptnet.datasets.faces.sampler import BucketOrder, FullOrder, Order, WindowOrder, nearest_size

BUCKETS = {(64, 64): list(range(0, 13)), (48, 80): list(range(13, 18)), (80, 48): [18]}
ORDERS: dict[str, Callable[[int], Order]] = {
    "full": lambda seed: FullOrder(range(19), 3, seed=seed),
    "window": lambda seed: WindowOrder([4, 1, 7, 2, 5], 2, 3, seed=seed),
    "bucket": lambda seed: BucketOrder(BUCKETS, 3, seed=seed),
}


def rows(order: Order, num_batches: int, *, num_ranks: int = 1, start: int = 0) -> list[list[int]]:
    """The rows of each batch of all ranks together, in the global order."""
    shares = [
        islice(iter(order.batches(rank=rank, num_ranks=num_ranks, start=start * 3 * num_ranks)), num_batches)
        for rank in range(num_ranks)
    ]
    return [[order.row(sample) for sample in batch] for step in zip(*shares, strict=True) for batch in step]


@pytest.mark.parametrize("kind", list(ORDERS))
def test_every_row_comes_once_an_epoch(kind: str):
    order = ORDERS[kind](5)
    seen = [row for batch in rows(order, 30) for row in batch]
    epochs = [seen[19 * epoch : 19 * (epoch + 1)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(19)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows(ORDERS[kind](6), 30) != rows(order, 30)


@pytest.mark.parametrize("kind", list(ORDERS))
def test_ranks_do_not_change_what_is_seen(kind: str):
    order = ORDERS[kind](5)
    assert rows(order, 10, num_ranks=3) == rows(order, 30)


@pytest.mark.parametrize("kind", list(ORDERS))
def test_a_later_start_goes_on_in_the_same_order(kind: str):
    order, fresh = ORDERS[kind](5), pickle.loads(pickle.dumps(ORDERS[kind](5)))
    assert rows(fresh, 9, num_ranks=2, start=7) == rows(order, 16, num_ranks=2)[14:]


@pytest.mark.parametrize("kind", list(ORDERS))
def test_sample_numbers_are_unique(kind: str):
    batches = list(islice(iter(ORDERS[kind](5).batches(rank=0, num_ranks=1, start=0)), 30))
    numbers = [sample for batch in batches for sample in batch]
    assert len(set(numbers)) == len(numbers)


def test_batches_of_buckets_have_one_size_and_may_be_smaller_at_a_buckets_end():
    order = BucketOrder(BUCKETS, 3, seed=1)
    assert order.num_batches == 5 + 2 + 1
    size_of = {row: size for size, members in BUCKETS.items() for row in members}
    lengths = []
    for batch in rows(order, order.num_batches):
        assert len({size_of[row] for row in batch}) == 1
        lengths.append(len(batch))
    assert sorted(lengths) == [1, 1, 2, 3, 3, 3, 3, 3]


def test_a_window_mixes_few_shards_and_names_the_next():
    order = WindowOrder([10] * 6, 2, 5, seed=3)
    windows = [{order.row(sample) // 10 for sample in range(start, start + 20)} for start in range(0, 60, 20)]
    assert [len(window) for window in windows] == [2, 2, 2]
    assert order.ahead(3) == ()
    assert set(order.ahead(15)) == windows[1]
    assert set(order.ahead(59)) == {order.row(sample) // 10 for sample in range(60, 80)}
    with pytest.raises(ValueError, match="window=0"):
        WindowOrder([1], 0, 1, seed=0)


def test_images_go_into_the_bucket_of_their_shape():
    sizes = [(512, 512), (448, 576), (576, 448)]
    assert nearest_size(1000, 1010, sizes) == (512, 512)
    assert nearest_size(600, 800, sizes) == (448, 576)
    assert nearest_size(4000, 100, sizes) == (576, 448)
