"""What the stages that train by denoising share: frozen parts, cached latents, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.nn import functional as F

from promptnet.datasets.avatars.latents import AvatarLatents
from promptnet.datasets.stream import sample_noise, sample_uniform
from promptnet.inference.sampling.schedule import prediction_type
from promptnet.inference.tuning.loss import denoising_target, noised
from promptnet.training.stage import Stage, channels_last

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DiffusionStage(Stage):
    """A stage whose loss is the mean squared error of the scheduler's prediction type, on latents encoded once.

    The data module is `promptnet.datasets.avatars.module.AvatarDataModule`, or one like it.

    Args:
        frozen: the parts that do not train, by name, `vae` among them.
        scheduler: gives the noise levels and the prediction type.
        seed: of noise and timesteps.
        timesteps: "low-discrepancy" spreads a batch over all noise levels; "independent" draws each for itself, as
            published.
    """

    def __init__(
        self,
        frozen: dict[str, nn.Module],
        scheduler: DDIMScheduler,
        seed: int,
        timesteps: Timesteps = "low-discrepancy",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.timesteps: Timesteps = timesteps
        timesteps_of(timesteps, 0, torch.zeros(0), 1)  # refuses what is not known
        # Kept in a dictionary: neither optimiser, checkpoint nor weight average should hold what does not train.
        self.frozen: dict[str, Any] = {
            name: channels_last(part.float()).requires_grad_(False).eval() for name, part in frozen.items()
        }
        self.scheduler, self.seed = scheduler, seed
        self.alphas: torch.Tensor
        self.register_buffer("alphas", scheduler.alphas_cumprod.clone(), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> DiffusionStage:
        """A copy that shares what does not train: a weight average deep-copies the whole stage, in every process."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo.update({id(part): part for part in self.frozen.values()})
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        return copied

    def setup(self, stage: str) -> None:
        """Open the latents of the data module's images; they are encoded when they are first asked for."""
        super().setup(stage)
        module: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        vae = self.frozen["vae"]
        self.latents: dict[str, Any] = {
            split: AvatarLatents(module.rendered(split), vae) for split in ("train", "validation")
        }

    def on_fit_start(self) -> None:
        """Move the frozen parts to where this one is by now: Lightning moves modules after `setup`."""
        for part in self.frozen.values():
            part.to(self.device)

    def cached(self, split: str, index: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) of the images at these places (B,) of the rendered set."""
        return self.latents[split][index.cpu()].to(self.device, memory_format=torch.channels_last)

    def denoising_loss(self, predict: Predict, latents: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Noise latents (B, C, h, w) to levels and with noise that the sample numbers (B,) determine, and compare.

        Args:
            predict: (x_t, timesteps (B,)) -> the network's output, like the latents.
            latents: clean ones.
            samples: numbers of the samples.
        """
        samples = samples.cpu()
        noise = sample_noise(self.seed, samples, "noise", tuple(latents.shape[1:])).to(latents)
        timesteps = timesteps_of(self.timesteps, self.seed, samples, len(self.alphas)).to(latents.device)
        alphas = self.alphas[timesteps]
        target = denoising_target(latents, noise, alphas, prediction_type(self.scheduler))
        predicted, weights = predict(noised(latents, noise, alphas), timesteps), self.sample_weights(alphas)
        if weights is None:
            return F.mse_loss(predicted, target)
        return (weights * (predicted.float() - target).square().mean(dim=(1, 2, 3))).mean()

    def sample_weights(self, alphas: torch.Tensor) -> torch.Tensor | None:
        """How much each sample's error counts, by its alphabar (B,); None where all count alike."""
        return None


Timesteps = Literal["low-discrepancy", "independent"]


_GOLDEN = 0.6180339887498949


def low_discrepancy_timesteps(seed: int, samples: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """Timesteps (B,) int64, uniform in 0 to num_timesteps - 1, neighbouring sample numbers spread evenly.

    The golden-ratio sequence makes every batch cover all noise levels, which takes variance out of the gradient; a
    number of the sample's own breaks up its pattern within cells of 1/64.
    """
    place = (samples.double() * _GOLDEN + sample_uniform(seed, samples, "timestep").double() / 64) % 1.0
    return (place * num_timesteps).long().clamp_max(num_timesteps - 1)


def independent_timesteps(seed: int, samples: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """Timesteps (B,) int64, uniform in 0 to num_timesteps - 1, each drawn for itself, as published trainings do."""
    place = sample_uniform(seed, samples, "independent timestep").double()
    return (place * num_timesteps).long().clamp_max(num_timesteps - 1)


def timesteps_of(kind: Timesteps, seed: int, samples: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """Timesteps (B,) of samples (B,), drawn in one of the two ways.

    Raises:
        ValueError: the way is not known.
    """
    if kind not in ("low-discrepancy", "independent"):
        raise ValueError(f"timesteps={kind!r} is not known: it is 'low-discrepancy' or 'independent'")
    draw = low_discrepancy_timesteps if kind == "low-discrepancy" else independent_timesteps
    return draw(seed, samples, num_timesteps)


def min_snr_weights(alphas: torch.Tensor, gamma: float, kind: str) -> torch.Tensor:
    """Weights (B,) of the squared errors at alphabar (B,): min(SNR, gamma) of the error in x_0, with SNR = a / (1-a).

    An error in epsilon is sqrt(SNR) times that in x_0, one in v sqrt(SNR + 1) times. So the weights are
    min(SNR, gamma) / SNR = min(1, gamma (1-a) / a) for epsilon and min(SNR, gamma) / (SNR + 1) = min(a, gamma (1-a))
    for v. Written in a, both are finite everywhere. At zero terminal SNR (a = 0) the weight of epsilon is 1, and that
    of v 0: pure noise says nothing of x_0, so by this measure there is nothing to be learnt from it.

    Args:
        alphas: in [0, 1].
        gamma: published 5.
        kind: "epsilon" or "v_prediction".
    """
    rest = gamma * (1 - alphas)
    if kind == "epsilon":
        return (rest / alphas.clamp(min=torch.finfo(alphas.dtype).tiny)).clamp(max=1)
    return torch.minimum(alphas, rest)
