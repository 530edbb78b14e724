"""Which noise level each sample of a denoising stage is trained at."""

from __future__ import annotations

import torch

from promptnet.datasets.stream import sample_uniform

_GOLDEN = 0.6180339887498949


def low_discrepancy_timesteps(seed: int, samples: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """Timesteps (B,) int64, uniform in 0 to num_timesteps - 1, neighbouring sample numbers spread evenly.

    The golden-ratio sequence makes every batch cover all noise levels, which takes variance out of the gradient; a
    number of the sample's own breaks up its pattern within cells of 1/64.
    """
    place = (samples.double() * _GOLDEN + sample_uniform(seed, samples, "timestep").double() / 64) % 1.0
    return (place * num_timesteps).long().clamp_max(num_timesteps - 1)
