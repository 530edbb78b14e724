"""Stage 3 of the embedded model: the U-Net, drawing avatars from captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from promptnet.datasets.avatars.render import FIELDS
from promptnet.datasets.stream import sample_rng
from promptnet.models.judge import AvatarJudge
from promptnet.models.tiny import build_scheduler, build_unet
from promptnet.training.diffusion_stage import DiffusionStage
from promptnet.training.stage import channels_last, save_half


class BaseModelStage(DiffusionStage):
    """Text-to-image diffusion on cached latents, captions dropped now and then for classifier-free guidance.

    Args:
        base_dir: diffusers folder with the trained VAE, tokenizer and text encoder; the U-Net is written there.
        judge_dir: validation judge; where it is missing, validation logs the loss only.
        channels: of the U-Net's three levels.
        start_from: folder of a U-Net to go on from (its weights, not its optimiser); None starts anew.
        caption_dropout: probability of an empty prompt.
        seed: of noise, timesteps and dropout.
        num_generated: validation images drawn and judged.
        guidance_scale: of those.
    """

    def __init__(
        self,
        base_dir: str = "checkpoints/tiny",
        judge_dir: str = "checkpoints/judges/validation",
        channels: tuple[int, int, int] = (64, 128, 192),
        start_from: str | None = None,
        caption_dropout: float = 0.1,
        seed: int = 0,
        num_generated: int = 64,
        guidance_scale: float = 3.0,
        **stage: Any,
    ) -> None:
        self.base_dir, self.judge_dir = Path(base_dir), Path(judge_dir)
        frozen = {
            "vae": AutoencoderKL.from_pretrained(self.base_dir / "vae"),
            "text_encoder": CLIPTextModel.from_pretrained(self.base_dir / "text_encoder"),
        }
        if self.judge_dir.exists():
            frozen["judge"] = AvatarJudge.from_pretrained(self.judge_dir)
        super().__init__(frozen, build_scheduler(), seed, **stage)
        self.save_hyperparameters()
        self.caption_dropout, self.num_generated, self.guidance_scale = caption_dropout, num_generated, guidance_scale
        self.tokenizer = CLIPTokenizer.from_pretrained(self.base_dir / "tokenizer")
        unet: Any = UNet2DConditionModel.from_pretrained(start_from) if start_from else build_unet(channels)
        self.unet = channels_last(unet.float())

    @torch.no_grad()
    def text_states(self, captions: list[str]) -> torch.Tensor:
        """Text encoder states (B, 48, D) of captions, padded as at inference."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        return self.frozen["text_encoder"](ids.to(self.device)).last_hidden_state

    def _loss(self, batch: dict[str, Any], split: str, captions: list[str]) -> torch.Tensor:
        states = self.text_states(captions)
        latents = self.cached(split, batch["index"])
        return self.denoising_loss(lambda x, t: self.unet(x, t, states).sample, latents, batch["sample"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        dropped = [sample_rng(self.seed, int(k), "dropout").random() < self.caption_dropout for k in batch["sample"]]
        captions = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        loss = self._loss(batch, "train", captions)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(captions))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on unseen people, and what the judge reads in images of their full captions."""
        self.log(
            "val/loss", self._loss(batch, "validation", batch["caption"]), prog_bar=True, batch_size=len(batch["index"])
        )
        if batch_idx * len(batch["index"]) < self.num_generated and "judge" in self.frozen:
            read = self.frozen["judge"](self._draw(batch["caption"], seed=batch_idx))
            for place, field in enumerate(FIELDS):
                hits = (read[field].argmax(1) == batch["codes"][:, place]).float().mean()
                self.log(f"judge/{field}", hits, batch_size=len(batch["index"]))

    def _draw(self, captions: list[str], seed: int) -> torch.Tensor:
        """Images (B, 3, 64, 64) in [-1, 1] for captions."""
        pipe = StableDiffusionPipeline(
            unet=self.unet,
            scheduler=build_scheduler(),  # type: ignore[arg-type]
            vae=self.frozen["vae"],
            text_encoder=self.frozen["text_encoder"],
            tokenizer=self.tokenizer,
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        generated = pipe(
            captions, num_inference_steps=12, guidance_scale=self.guidance_scale, generator=generator, output_type="pt"
        )
        return generated.images * 2 - 1  # type: ignore[union-attr]

    def on_train_end(self) -> None:
        """Write the U-Net and its scheduler."""
        if self.trainer.is_global_zero:
            save_half(self.unet, self.base_dir / "unet")
            self.scheduler.save_pretrained(self.base_dir / "scheduler")
