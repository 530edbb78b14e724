"""Stage 1 of the embedded model: the autoencoder, images to latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from promptnet.datasets.stream import sample_noise
from promptnet.models.tiny import build_vae
from promptnet.training.stage import Stage, channels_last, save_half


def psnr_db(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio (B,) in decibels of images (B, C, H, W) in [-1, 1]."""
    error = (prediction.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-10))


class AutoencoderStage(Stage):
    """L1 + squared error of the reconstruction with a light KL term; no adversary, the avatars are flat colours.

    Args:
        kl_weight: of the mean KL divergence a latent element.
        seed: of the latents' sampling noise.
        decoder_from: folder of a trained VAE whose decoder goes on training. Its encoder stays as it is, bit for bit,
            so what was trained on its latents stays valid. None trains both parts anew.
        export_dir: folder of the diffusers model; its VAE is written there when training ends.
    """

    def __init__(
        self,
        kl_weight: float = 1e-4,
        seed: int = 0,
        decoder_from: str | None = None,
        export_dir: str = "checkpoints/tiny",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.save_hyperparameters()
        self.kl_weight, self.seed, self.export_dir = kl_weight, seed, export_dir
        self.decoder_only = decoder_from is not None
        trained: Any = AutoencoderKL.from_pretrained(decoder_from).float() if decoder_from else build_vae()
        self.vae: Any = channels_last(trained)
        if self.decoder_only:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        pixels = batch["pixels"].contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pixels).latent_dist
        noise = sample_noise(self.seed, batch["sample"], "posterior", tuple(posterior.mean.shape[1:])).to(pixels)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        reconstruction = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        self.log_dict({"train/reconstruction": reconstruction, "train/kl": kl}, prog_bar=True)
        return reconstruction + self.kl_weight * kl

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Decibels of unseen people's images through the bottleneck, and the latents' spread."""
        latents = self.vae.encode(batch["pixels"]).latent_dist.mode()
        decoded = self.vae.decode(latents).sample
        self.log("val/psnr_db", psnr_db(decoded, batch["pixels"]).mean(), prog_bar=True)
        self.log("val/latent_std", latents.std(), prog_bar=True)

    def on_train_end(self) -> None:
        """Write the VAE, its scaling factor set so that latents have unit variance."""
        if self.trainer.is_global_zero:
            if not self.decoder_only:
                self.vae.register_to_config(scaling_factor=round(1.0 / self._latent_std(), 5))
            save_half(self.vae, Path(self.export_dir) / "vae")

    @torch.no_grad()
    def _latent_std(self) -> float:
        batch = next(iter(self.trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
        return float(self.vae.encode(batch["pixels"].to(self.device)).latent_dist.mode().std())
