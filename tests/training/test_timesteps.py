"""Timesteps are uniform, spread evenly over neighbouring samples, and a function of (seed, sample number) alone."""

import pytest
import torch

from promptnet.training.diffusion_stage import low_discrepancy_timesteps, timesteps_of


def test_every_short_run_of_samples_covers_all_noise_levels():
    for start in (0, 1000, 123_456):
        steps = low_discrepancy_timesteps(0, torch.arange(start, start + 64), 1000)
        counts = torch.bincount(steps // 125, minlength=8)
        assert int(counts.min()) >= 5  # independent draws would leave one of the eight parts below 4 most of the time
        assert int(counts.max()) <= 12


def test_timesteps_are_uniform_and_in_range():
    steps = low_discrepancy_timesteps(3, torch.arange(20_000), 1000)
    assert int(steps.min()) == 0
    assert int(steps.max()) == 999
    assert abs(float(steps.float().mean()) - 499.5) < 3


def test_a_sample_keeps_its_timestep_whatever_its_batch():
    together = low_discrepancy_timesteps(5, torch.tensor([10, 11, 12]), 1000)
    assert int(low_discrepancy_timesteps(5, torch.tensor([12]), 1000)[0]) == int(together[2])
    assert not torch.equal(together, low_discrepancy_timesteps(6, torch.tensor([10, 11, 12]), 1000))


def test_independent_timesteps_are_uniform_and_functions_of_the_sample():
    samples = torch.arange(20_000)
    found = timesteps_of("independent", 3, samples, 1000)
    assert (int(found.min()), int(found.max())) == (0, 999)
    counts = torch.histc(found.float(), 10, 0, 1000)
    assert (counts - 2000).abs().max() < 5 * 2000**0.5
    differences = found.diff().abs().float()
    assert abs(float(differences.mean()) - 1000 / 3) < 10  # of two that know nothing of each other
    assert torch.equal(found[100:105], timesteps_of("independent", 3, samples[100:105], 1000))
    assert not torch.equal(found, timesteps_of("independent", 4, samples, 1000))
    with pytest.raises(ValueError, match="timesteps='sobol' is not known"):
        timesteps_of("sobol", 0, samples, 10)  # type: ignore[arg-type]
