"""Pretraining the encoder: the base model's own denoising loss and nothing else (arXiv 2305.13579, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from promptnet.datasets.latents import encode_latents
from promptnet.models.promptnet import PromptNetModel
from promptnet.models.text import encode_prompts
from promptnet.training.objective import draw_noise, low_discrepancy_timesteps, noisy_latents, prediction_target
from promptnet.training.stage import Stage


def mean_word_norm(text_encoder: CLIPTextModel) -> float:
    """Mean L2 norm of a text tower's token embeddings: the length that a pseudo-word should have among words."""
    return float(text_encoder.get_input_embeddings().weight.detach().float().norm(dim=1).mean())


class PretrainStage(Stage):
    """Trains PromptNet alone: S* from the reference picture, noise predicted in the target picture, mean squared error.

    The U-Net, the text tower, the vision tower and the VAE stay as they are; gradients pass through U-Net and text
    tower into the pseudo-words.

    Args:
        base_dir: diffusers folder of the base model.
        export_dir: folder the encoder is written to when training ends.
        start_from: folder of an encoder to go on from (its weights); None starts from the U-Net's trunk.
        region_kernel_size: R; (H / 8 R)(W / 8 R) pseudo-words from latents H x W.
        region_proj_channel: channels of each head's projection.
        keep_word_norm: hold pseudo-words at the mean norm of the tower's words (times one learned gain).
        use_res: with the published residual heads (they get no gradient).
        seed: of noise and timesteps.
    """

    def __init__(
        self,
        base_dir: str = "checkpoints/tiny",
        export_dir: str = "checkpoints/tiny/promptnet",
        start_from: str | None = None,
        region_kernel_size: int = 2,
        region_proj_channel: int = 128,
        keep_word_norm: bool = True,
        use_res: bool = False,
        seed: int = 0,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.save_hyperparameters()
        folder, self.export_dir, self.seed = Path(base_dir), Path(export_dir), seed
        # Frozen parts are no modules of this one: neither optimiser, checkpoint nor average should hold them.
        self._frozen: dict[str, Any] = {
            "vae": AutoencoderKL.from_pretrained(folder / "vae"),
            "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
            "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
            "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        }
        for model in self._frozen.values():
            model.float().requires_grad_(False).eval()
        self._frozen["unet"].to(memory_format=torch.channels_last)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.register_buffer("alphas", self.scheduler.alphas_cumprod.clone(), persistent=False)
        self.promptnet = self._encoder(start_from, region_kernel_size, region_proj_channel, keep_word_norm, use_res)

    def _encoder(
        self, start_from: str | None, region_kernel_size: int, region_proj_channel: int, keep_word_norm: bool, use_res: bool
    ) -> PromptNetModel:
        if start_from:
            return PromptNetModel.from_pretrained(start_from).float()
        text_encoder = self._frozen["text_encoder"]
        return PromptNetModel.from_unet(
            self._frozen["unet"],
            vision_dim=self._frozen["image_encoder"].config.hidden_size,
            prompt_channel=text_encoder.config.hidden_size,
            region_proj_channel=region_proj_channel,
            region_kernel_size=region_kernel_size,
            use_res=use_res,
            word_norm=mean_word_norm(text_encoder) if keep_word_norm else None,
        )

    def prepare_data(self) -> None:
        """Encode all pictures once (rank 0)."""
        self._latents_of("train")
        self._latents_of("validation")

    def setup(self, stage: str) -> None:
        """Read the encoded pictures; move the frozen parts to where this one is."""
        self.latents = {split: self._latents_of(split) for split in ("train", "validation")}
        for model in self._frozen.values():
            model.to(self.device)

    def _latents_of(self, split: str) -> torch.Tensor:
        module: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return encode_latents(module.rendered(split), self._frozen["vae"], module.cache_dir)

    def _loss(self, batch: dict[str, Any], split: str) -> torch.Tensor:
        target, reference = (
            self.latents[split][batch[f"{which}_index"].cpu()].to(self.device) for which in ("target", "reference")
        )
        noise = draw_noise(self.seed, batch["sample"], target)
        timesteps = low_discrepancy_timesteps(self.seed, batch["sample"].cpu(), len(self.alphas)).to(self.device)
        alphas = self.alphas[timesteps]
        noisy = noisy_latents(target, noise, alphas)
        states = self._prompt_states(batch, reference, noisy, timesteps)
        predicted = self._frozen["unet"](noisy, timesteps, states).sample
        return F.mse_loss(predicted, prediction_target(target, noise, alphas, self.scheduler.config["prediction_type"]))

    def _prompt_states(
        self, batch: dict[str, Any], reference: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Text states (B, tokens, D) of the prompts with the reference's pseudo-words in them."""
        with torch.no_grad():
            vision = self._frozen["image_encoder"](pixel_values=batch["reference_pixels"]).last_hidden_state
        words = self.promptnet(reference, timesteps, vision, noisy_latents=noisy).pseudo_words  # (B, L, D)
        rows = [{"S*": row} for row in words]
        return encode_prompts(self.tokenizer, self._frozen["text_encoder"], batch["prompt"], rows).hidden_states

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        loss = self._loss(batch, "train")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["prompt"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on people never seen in training."""
        self.log("val/loss", self._loss(batch, "validation"), prog_bar=True, batch_size=len(batch["prompt"]))

    def on_train_end(self) -> None:
        """Write the encoder."""
        if self.trainer.is_global_zero:
            self.promptnet.to(torch.float16).save_pretrained(self.export_dir)
