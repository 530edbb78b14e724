"""What tuning minimises: the base model's own denoising error, where the image is."""

import torch
from torch import Tensor


def noised(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1-a) n, with latents (B, C, H, W) and alphabar `alphas` (B,)."""
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def denoising_target(latents: Tensor, noise: Tensor, alphas: Tensor, kind: str) -> Tensor:
    """What the network should say: n ("epsilon"), or v = sqrt(a) n - sqrt(1-a) x_0 (arXiv 2202.00512, appendix D)."""
    if kind == "epsilon":
        return noise
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def masked_error(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the cells where `mask` (B, 1, H, W) is 1, for each row (B,)."""
    errors = (output.float() - target.float()).square().mean(dim=1, keepdim=True)  # (B, 1, H, W)
    return (errors * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)


def held_out_timesteps(num_timesteps: int, count: int = 4) -> Tensor:
    """The middles of `count` equal parts of the schedule: the noise levels that tuning is judged at."""
    return (torch.arange(count) * 2 + 1) * num_timesteps // (2 * count)


def training_timesteps(
    batch_size: int, num_timesteps: int, held_out: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One timestep from each of `batch_size` equal parts of the schedule, in random order, none of them held out.

    Spread evenly they have less variance than independent draws, and each is still uniform.
    """
    allowed = torch.arange(num_timesteps)[~torch.isin(torch.arange(num_timesteps), held_out)]
    places = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    chosen = allowed[(places * len(allowed)).long().clamp(max=len(allowed) - 1)]
    return chosen[torch.randperm(batch_size, generator=generator)]
