"""The benchmark of our own code's cost compares equal work."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


@pytest.fixture(scope="module")
def overhead() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_overhead", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_ratios_are_of_pairs_in_turn(overhead: Any):
    called: list[str] = []
    ratios = overhead.ratio_of(lambda: called.append("one"), lambda: called.append("other"), 2)
    assert len(ratios) == 2
    assert called == ["other", "one", "one", "other", "other", "one"]
