"""The benchmark of our own code's cost compares equal work."""

import importlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
    """Let modules be found as `python benchmarks/overhead.py` finds them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def overhead(benchmarks: None) -> Any:
    return importlib.import_module("overhead")


@pytest.fixture(scope="module")
def timing(benchmarks: None) -> Any:
    return importlib.import_module("timing")


def test_shares_of_an_image_are_of_every_network_and_sum_to_one(overhead: Any, pipe: Any, make_subject: Any):
    subject = make_subject(pipe, tuned=True)

    def draw() -> Any:
        return pipe("a photo of S*", subject=subject, num_inference_steps=1, output_type="pt")

    found = overhead.shares(pipe, draw)
    assert set(found) == {*overhead.NETWORKS, "own code"}
    assert all(found[name] > 0 for name in overhead.NETWORKS)
    assert sum(found.values()) == pytest.approx(1)
    assert not any(pipe.unet._forward_pre_hooks.values())
    modules = overhead.by_module(draw)
    assert "inference/sampling/loop.py" in modules
    assert sum(modules.values()) < 1


def test_the_stock_pipeline_draws_the_same(overhead: Any, pipe: Any):
    side = pipe.unet.config["sample_size"]
    latents = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(0))
    images = [make(pipe, "a photo", 2, latents)() for make in (overhead.our_call, overhead.stock_call)]
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)


def test_pefts_users_get_what_ours_get(overhead: Any, pipe: Any):
    ours, peft = overhead.users_calls(pipe.unet, 2, rank=2)
    found = ours()
    torch.testing.assert_close(found, peft(), rtol=1e-4, atol=1e-5)
    with patch.object(overhead, "apply_loras", lambda *_: nullcontext()):
        assert (ours() - found).abs().max() > 1e-3


def test_ratios_are_of_pairs_in_turn(timing: Any):
    called: list[str] = []

    def call(name: str, seconds: list[float]) -> float:
        called.append(name)
        return seconds.pop(0)

    one, other = [100.0, 6.0, 2.0], [1.0, 2.0, 4.0]  # the first pair warms up
    ratios = timing.paired_ratios(lambda: call("one", one), lambda: call("other", other), 2)
    assert ratios == [3.0, 0.5]
    assert called == ["other", "one", "one", "other", "other", "one"]
    assert timing.spread(ratios) == "1.750 (0.500 to 3.000, 2 pairs)"


def test_a_calls_seconds_are_the_processs_own(timing: Any):
    """Sleeping costs none, as work of others costs none."""
    assert timing.seconds_of(lambda: time.sleep(0.2)) < 0.1
    assert timing.seconds_of(lambda: sum(range(3_000_000))) > 0.005
