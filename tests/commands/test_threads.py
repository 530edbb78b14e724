"""Commands leave cores to others that are busy."""

import os
from collections.abc import Iterator

import pytest
import torch

from promptnet.commands._threads import choose_threads, free_cores


@pytest.mark.parametrize(
    ("num_cores", "load", "free"), [(8, 0.2, 8), (8, 2.6, 5), (2, 1.0, 1), (2, 9.0, 1), (1, 0.0, 1)]
)
def test_free_cores(num_cores: int, load: float, free: int) -> None:
    assert free_cores(num_cores, load) == free


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_a_command_beside_other_work_takes_fewer_threads_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    assert choose_threads() == 1
    assert torch.get_num_threads() == 1
    assert "computing with 1 of 3 CPU cores, as others are busy" in capsys.readouterr().err


@pytest.mark.usefixtures("two_threads")
def test_alone_it_takes_what_torch_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.3, 0.0, 0.0))
    assert choose_threads() == 2
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("two_threads")
def test_what_the_environment_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(os, "getloadavg", lambda: (50.0, 0.0, 0.0))
    assert choose_threads() == 2
