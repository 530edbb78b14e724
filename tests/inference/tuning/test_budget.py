"""Tuning keeps to the seconds and the memory it was given, on a clock and a meter that the tests turn."""

import warnings
from typing import Any

import pytest
import torch

from promptnet.inference.tuning import budget, customize
from promptnet.inference.tuning.config import TuningProgress
from tests.inference.tuning.test_customize import flags_of, image, run, weights_of


class Machine:
    """A made-up device: what things take is a formula, and time passes only so."""

    def __init__(self) -> None:
        self.now, self.num_steps = 100.0, 0
        self.encode_s, self.view_s, self.look_s = 0.1, 0.05, 0.3
        self.slower_after, self.slowdown = 10**9, 1.0
        self.peak = 0.0
        self.recomputed: list[bool] = []
        self.batches: list[int] = []
        self.dtypes: list[torch.dtype] = []

    def step_s(self, batch_size: int, dtype: torch.dtype) -> float:
        self.num_steps += 1
        slowdown = self.slowdown if self.num_steps > self.slower_after else 1.0
        return (0.2 + 0.2 * batch_size) * slowdown * (1.0 if dtype == torch.float32 else 0.5)

    def step(self, pipe: Any, batch_size: int) -> None:
        recomputes = pipe.unet.is_gradient_checkpointing
        self.now += self.step_s(batch_size, pipe.unet.dtype)
        self.peak = max(self.peak, 10 + (0.5 if recomputes else 3.0) * batch_size)
        self.batches.append(batch_size)
        self.recomputed.append(recomputes)
        self.dtypes.append(pipe.unet.dtype)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine on which everything that takes time in tuning happens."""
    made = Machine()

    class Watch(budget.Watch):
        def now_s(self) -> float:
            return made.now

        def restart_peak(self) -> None:
            made.peak = 0.0

        def peak_gib(self) -> float:
            return made.peak

        def has_memory(self) -> bool:
            return True

    monkeypatch.setattr(customize, "Watch", Watch)
    taken, looked = customize.Steps.take, customize.validation_loss
    encoded, prepared = budget.encode_references, customize.prepare_views

    def take(self: Any, references: Any, batch: Any) -> float:
        made.step(self.pipe, len(batch.latents))
        return taken(self, references, batch)

    def look(*given: Any) -> float:
        made.now += made.look_s
        return looked(*given)

    def encode(*given: Any) -> Any:
        made.now += made.encode_s
        return encoded(*given)

    def prepare(pipe: Any, images: Any, config: Any, draws: Any) -> Any:
        made.now += len(images) * (made.encode_s + made.view_s * config.num_views)
        return prepared(pipe, images, config, draws)

    monkeypatch.setattr(customize.Steps, "take", take)
    monkeypatch.setattr(customize, "validation_loss", look)
    monkeypatch.setattr(budget, "encode_references", encode)
    monkeypatch.setattr(customize, "prepare_views", prepare)
    return made


def tuned(pipe: Any, **options: Any) -> tuple[Any, list[TuningProgress]]:
    seen: list[TuningProgress] = []
    given = {"steps": 40, "batch_size": 4, "num_views": 4, "patience": 10**6, "learning_rate": 3e-2}
    return run(pipe, callback=seen.append, **{**given, **options}), seen


@pytest.mark.parametrize("seconds", [6.0, 12.0, 25.0])
def test_tuning_ends_before_its_time_and_uses_most_of_it(pipe: Any, machine: Machine, seconds: float):
    subject, seen = tuned(pipe, seconds=seconds)
    spent = machine.now - 100
    assert 0.7 * seconds < spent <= seconds
    assert seen[-1].step == seen[-1].num_steps <= 40
    assert subject.loras


def test_enough_time_changes_no_step(pipe: Any, machine: Machine):
    """What is measured draws nothing from the call's generator."""
    planned, seen = tuned(pipe, steps=4, seconds=10_000.0)
    plain, others = tuned(pipe, steps=4)
    assert [progress.loss for progress in seen] == [progress.loss for progress in others]
    assert all(torch.equal(planned.loras[name].B, plain.loras[name].B) for name in plain.loras)


def test_a_machine_that_becomes_slower_does_not_break_the_promise(pipe: Any, machine: Machine):
    machine.slower_after, machine.slowdown = 5, 2.5
    _, seen = tuned(pipe, seconds=15.0)
    assert machine.now - 100 <= 15
    assert seen[-1].step < seen[-1].num_steps


def test_a_small_budget_has_small_batches_rather_than_few_steps(pipe: Any, machine: Machine):
    machine.encode_s = machine.view_s = 0.0
    _, seen = tuned(pipe, batch_size=12, seconds=20.0)
    assert machine.batches[0] == 12
    assert machine.batches[-1] < 12
    assert seen[-1].num_steps >= 6
    assert machine.now - 100 <= 20


def test_without_time_for_a_step_the_subject_is_the_encoders(pipe: Any, machine: Machine):
    with pytest.warns(UserWarning, match="no time for a step"):
        subject, seen = tuned(pipe, seconds=0.2)
    assert not subject.loras
    assert not seen


def test_fewer_views_are_encoded_where_they_take_long(pipe: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    prepared = customize.prepare_views
    monkeypatch.setattr(
        customize, "prepare_views", lambda p, i, config, d: asked.append(config.num_views) or prepared(p, i, config, d)
    )
    machine.encode_s = 1.0
    tuned(pipe, num_views=12, seconds=20.0)
    assert asked == [4]  # a quarter of the 19 s that are left


def test_moved_references_are_read_in_what_is_measured(pipe: Any, machine: Machine):
    """Batches number the moved copies, too."""
    before = pipe.config["tuning"]
    pipe.register_to_config(tuning={"moved_references": 3})
    try:
        subject, _ = tuned(pipe, seconds=8.0)
    finally:
        pipe.register_to_config(tuning=before)
    assert subject.num_references == 1
    assert machine.now - 100 <= 8


def test_a_gpu_in_float32_goes_to_half_precision_for_more_steps(pipe: Any, machine: Machine):
    subject, seen = tuned(pipe, steps=40, seconds=30.0)
    assert machine.now - 100 <= 30
    assert machine.dtypes[0] == torch.float32
    assert machine.dtypes[-1] == torch.bfloat16
    assert pipe.unet.dtype == torch.float32
    assert {lora.B.dtype for lora in subject.loras.values()} == {torch.float32}
    assert all(progress.loss < 10 for progress in seen)


@pytest.mark.parametrize(
    ("vram_gb", "batch_size", "recomputes"), [(30.0, 4, False), (17.0, 2, False), (11.5, 3, True), (10.5, 1, True)]
)
def test_the_largest_batch_that_fits_is_taken(
    pipe: Any, machine: Machine, vram_gb: float, batch_size: int, recomputes: bool
):
    """Without recomputing first, which is faster; nothing of the pipeline's own is changed."""
    before, flags = weights_of(pipe), flags_of(pipe)
    tuned(pipe, steps=2, vram_gb=vram_gb)
    assert (machine.batches[-1], machine.recomputed[-1]) == (batch_size, recomputes)
    assert not pipe.unet.is_gradient_checkpointing
    assert flags_of(pipe) == flags
    assert all(torch.equal(before[name], value) for name, value in weights_of(pipe).items())


def test_too_little_memory_is_refused_with_what_is_needed(pipe: Any, machine: Machine):
    with pytest.raises(ValueError, match=r"vram_gb=9.0 is too little.* took 10.5 GiB"):
        tuned(pipe, vram_gb=9.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seconds": 0}, "seconds=0 must be"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": "5"}, "seconds='5'"),
        ({"vram_gb": 8}, "memory of a GPU, but this pipeline is on cpu"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(pipe: Any, given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        run(pipe, **given)


def test_a_real_clock_has_the_same_outcome_or_an_earlier_end(pipe: Any):
    """No time is asserted: another process may take it all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = pipe.customize(image(), steps=3, num_views=2, seconds=30.0, progress_bar=False, allow_foreign=True)
    assert subject.num_references == 1
