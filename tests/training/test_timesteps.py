"""Timesteps are uniform, spread evenly over neighbouring samples, and a function of (seed, sample number) alone."""

import torch

from promptnet.training.diffusion_stage import low_discrepancy_timesteps


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
