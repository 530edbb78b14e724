"""Slots of workers on many machines: one holder each, taken over from the silent alone."""

from pathlib import Path

import pytest

from promptnet.serve.database import open_database
from promptnet.serve.slots import MOST, SILENT_S, NoSlot, claim_slot, take_forsaken


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'slots.sqlite'}"


def test_each_worker_has_a_slot_of_its_own(url: str) -> None:
    engine = open_database(url)
    slots = [claim_slot(engine, now=100.0) for _ in range(MOST)]
    assert [slot.number for slot in slots] == list(range(MOST))
    with pytest.raises(NoSlot, match=f"all {MOST} slots"):
        claim_slot(engine, now=100.0 + SILENT_S)
    engine.dispose()


def test_a_silent_slot_is_taken_over_and_its_holder_finds_out(url: str) -> None:
    engine = open_database(url)
    first, second = claim_slot(engine, now=100.0), claim_slot(engine, now=100.0)
    assert second.beat(now=110.0)
    heir = claim_slot(engine, now=100.0 + SILENT_S + 1)
    assert heir.number == first.number
    assert not first.beat()
    assert heir.beat()
    assert second.beat()
    engine.dispose()


def test_one_that_beats_keeps_its_slot(url: str) -> None:
    engine = open_database(url)
    slot = claim_slot(engine, now=100.0)
    for now in (120.0, 140.0, 160.0):
        assert slot.beat(now=now)
    assert claim_slot(engine, now=180.0).number == 1
    engine.dispose()


def test_a_slot_that_is_released_is_free_at_once(url: str) -> None:
    engine = open_database(url)
    slot = claim_slot(engine, now=100.0)
    slot.release()
    assert claim_slot(engine, now=101.0).number == slot.number
    assert not slot.beat()
    engine.dispose()


def test_the_jobs_of_a_silent_slot_are_taken_over_once_and_its_holder_finds_out(url: str) -> None:
    engine = open_database(url)
    dead, alive = claim_slot(engine, now=100.0), claim_slot(engine, now=100.0)
    assert take_forsaken(engine, now=100.0 + SILENT_S) == []
    assert alive.beat(now=125.0)
    assert take_forsaken(engine, now=101.0 + SILENT_S) == [dead.number]
    assert take_forsaken(engine, now=101.0 + SILENT_S) == []
    assert not dead.beat()
    assert alive.beat(now=132.0)
    assert claim_slot(engine, now=132.0).number == dead.number
    engine.dispose()
