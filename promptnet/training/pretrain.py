"""Pretraining the encoder: the base model's own denoising loss and nothing else (arXiv 2305.13579, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from promptnet.inference.defaults import SamplingDefaults
from promptnet.inference.pipeline import PromptNetPipeline
from promptnet.inference.tuning import TuningDefaults
from promptnet.models.promptnet import PromptNetModel
from promptnet.models.text import encode_prompts
from promptnet.training.diffusion_stage import DiffusionStage
from promptnet.training.export import save_half


def mean_word_norm(text_encoder: CLIPTextModel) -> float:
    """Mean L2 norm of a text tower's token embeddings: the length that a pseudo-word should have among words."""
    embeddings: Any = text_encoder.get_input_embeddings()
    return float(embeddings.weight.detach().float().norm(dim=1).mean())


class PretrainStage(DiffusionStage):
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
        sampling: knobs of `SamplingDefaults` that the finished pipeline draws with unless a call says otherwise.
        tuning: the same for `TuningDefaults`.
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
        sampling: dict[str, Any] | None = None,
        tuning: dict[str, Any] | None = None,
        seed: int = 0,
        **stage: Any,
    ) -> None:
        SamplingDefaults().replaced(sampling or {})
        TuningDefaults().replaced(tuning or {})
        folder, self.export_dir = Path(base_dir), Path(export_dir)
        frozen = {
            "vae": AutoencoderKL.from_pretrained(folder / "vae"),
            "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
            "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
            "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        }
        scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
        super().__init__(frozen, scheduler, seed, **stage)
        self.save_hyperparameters()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.promptnet = self._encoder(start_from, region_kernel_size, region_proj_channel, keep_word_norm, use_res)

    def _encoder(
        self,
        start_from: str | None,
        region_kernel_size: int,
        region_proj_channel: int,
        keep_word_norm: bool,
        use_res: bool,
    ) -> PromptNetModel:
        if start_from:
            started: Any = PromptNetModel.from_pretrained(start_from)
            return started.float()
        text_encoder = self.frozen["text_encoder"]
        return PromptNetModel.from_unet(
            self.frozen["unet"],
            vision_dim=self.frozen["image_encoder"].config.hidden_size,
            prompt_channel=text_encoder.config.hidden_size,
            region_proj_channel=region_proj_channel,
            region_kernel_size=region_kernel_size,
            use_res=use_res,
            word_norm=mean_word_norm(text_encoder) if keep_word_norm else None,
        )

    def _loss(self, batch: dict[str, Any], split: str) -> torch.Tensor:
        reference = self.cached(split, batch["reference_index"])
        with torch.no_grad():
            vision = self.frozen["image_encoder"](pixel_values=batch["reference_pixels"]).last_hidden_state

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            words = self.promptnet(reference, timesteps, vision, noisy_latents=noisy).pseudo_words  # (B, L, D)
            rows = [{"S*": row} for row in words]
            states = encode_prompts(self.tokenizer, self.frozen["text_encoder"], batch["prompt"], rows).hidden_states
            return self.frozen["unet"](noisy, timesteps, states).sample

        return self.denoising_loss(predict, self.cached(split, batch["target_index"]), batch["sample"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        loss = self._loss(batch, "train")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["prompt"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on people never seen in training."""
        self.log("val/loss", self._loss(batch, "validation"), prog_bar=True, batch_size=len(batch["prompt"]))

    def on_train_end(self) -> None:
        """Write the encoder; if its place is in the base model's folder, that folder is a PromptNetPipeline now."""
        if not self.trainer.is_global_zero:
            return
        save_half(self.promptnet, self.export_dir)
        folder = Path(self.hparams["base_dir"])
        if self.export_dir == folder / "promptnet":
            write_index(folder, self.hparams["sampling"], self.hparams["tuning"])


def write_index(folder: Path, sampling: dict[str, Any] | None, tuning: dict[str, Any] | None) -> None:
    """Write `model_index.json` beside a pipeline's parts, with the knobs that were measured for it."""
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "feature_extractor": CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
        "promptnet": PromptNetModel.from_pretrained(folder / "promptnet"),
    }
    PromptNetPipeline(**parts, sampling=sampling, tuning=tuning).save_config(folder)
