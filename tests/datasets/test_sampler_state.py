"""The position in the stream follows samples, not steps."""

from itertools import islice
from types import SimpleNamespace
from typing import Any

from promptnet.datasets.faces.sampler import FullOrder
from promptnet.training.editing.data import SeedDataModule


def module_at(step: int, *, batch_size: int, ranks: int = 1, accumulate: int = 1, rank: int = 0) -> SeedDataModule:
    module = SeedDataModule(7, batch_size, seed=3)
    trainer: Any = SimpleNamespace(
        global_step=step, accumulate_grad_batches=accumulate, world_size=ranks, global_rank=rank
    )
    module.trainer = trainer
    return module


def next_samples(module: SeedDataModule, batches: int) -> list[int]:
    found = islice(iter(module.train_dataloader()), batches)
    return [int(sample) for batch in found for sample in batch["sample"]]


def test_a_fresh_run_begins_at_the_start_and_a_step_takes_a_batch_of_every_rank() -> None:
    assert module_at(0, batch_size=4).samples_seen == 0
    assert module_at(5, batch_size=4, ranks=2, accumulate=3).samples_seen == 5 * 4 * 2 * 3
    assert SeedDataModule().samples_seen == 0, "without a trainer"


def test_a_run_goes_on_with_other_batches_where_it_was() -> None:
    before = module_at(6, batch_size=4)
    after = module_at(6, batch_size=3, ranks=2, accumulate=2)
    after.load_state_dict(before.state_dict())
    assert after.samples_seen == 24
    assert next_samples(after, 2) == [24, 25, 26, 30, 31, 32]
    other = module_at(6, batch_size=3, ranks=2, accumulate=2, rank=1)
    other.load_state_dict(before.state_dict())
    assert next_samples(other, 2) == [27, 28, 29, 33, 34, 35]


def test_and_again_after_steps_of_the_new_size() -> None:
    second = module_at(6, batch_size=6)
    second.load_state_dict(module_at(6, batch_size=4).state_dict())
    second.trainer.global_step = 10  # type: ignore[union-attr]
    assert second.samples_seen == 24 + 4 * 6
    third = module_at(10, batch_size=1)
    third.load_state_dict(second.state_dict())
    assert third.samples_seen == second.samples_seen


def test_an_order_starts_at_any_sample() -> None:
    order = FullOrder(range(19), 4, seed=1)
    assert next(iter(order.batches(rank=1, num_ranks=2, start=5))) == [9, 10, 11, 12]
