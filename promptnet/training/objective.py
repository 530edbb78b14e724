"""The denoising objective that the base model and its encoder share: noise a latent, predict, compare."""

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


def noisy_latents(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) n, with alphabar `alphas` (B,) and latents (B, C, H, W)."""
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def prediction_target(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor, kind: str) -> torch.Tensor:
    """What the network should say: the noise ("epsilon"), or v = sqrt(a) n - sqrt(1 - a) x_0 (arXiv 2202.00512).

    Raises:
        ValueError: for any other prediction type.
    """
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        a = alphas.view(-1, 1, 1, 1)
        return a.sqrt() * noise - (1 - a).sqrt() * latents
    raise ValueError(f"prediction_type={kind!r} is not supported; use 'epsilon' or 'v_prediction'")
