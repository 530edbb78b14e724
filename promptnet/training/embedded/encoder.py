"""Stage 4 of the embedded model: the encoder, with a teacher that knows the record.

The base model was trained with a `RecordEncoder`, whose pseudo-words say all that an image shows. That gives two more
errors beside the published one (the noise of the target): the distance of the encoder's pseudo-words to the teacher's,
which needs no pass through the U-Net and brings an encoder near in a fraction of the time, and the distance of the
U-Net's outputs under both, which has no noise of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from promptnet.datasets.stream import sample_noise
from promptnet.inference.tuning.loss import noised
from promptnet.training.diffusion_stage import low_discrepancy_timesteps
from promptnet.training.embedded.soft_words import RecordEncoder
from promptnet.training.pretrain.stage import PretrainStage


class AvatarPretrainStage(PretrainStage):
    """`PretrainStage` for `PairDataModule`.

    Args:
        words_weight: of the squared distance of pseudo-words to the teacher's, as a share of the words' squared norm;
            0 as ProFusion.
        words_only_steps: optimiser steps at the beginning in which that distance is all that is learned from.
        pretrain: arguments of `PretrainStage`; `described_weight` compares with the base model's prediction under the
            teacher's pseudo-words here.
    """

    def __init__(self, words_weight: float = 0.0, words_only_steps: int = 0, **pretrain: Any) -> None:
        if words_weight < 0 or words_only_steps < 0:
            raise ValueError(f"words_weight={words_weight} and words_only_steps={words_only_steps} must be at least 0")
        if words_only_steps and not words_weight:
            raise ValueError(f"words_only_steps={words_only_steps} needs a words_weight above 0")
        super().__init__(**pretrain)
        self.save_hyperparameters()
        self.words_weight, self.words_only_steps = words_weight, words_only_steps
        if words_weight or self.described_weight:
            self.frozen["teacher"] = _teacher(Path(self.hparams["base_dir"]), self.text_encoders.width)

    def _described(self, batch: dict[str, Any], noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the base model predicts under the teacher's pseudo-words."""
        with torch.no_grad():
            unet, words = self.frozen["unet"], self.frozen["teacher"](batch["record"])
            return unet(noisy.to(unet.dtype), timesteps, **self._conditions(batch, words)).sample

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        words_only = self.global_step < self.words_only_steps
        loss = torch.zeros((), device=self.device) if words_only else super().training_step(batch, batch_idx)
        if not self.words_weight:
            return loss
        distance = self.words_distance(batch, "train")
        self.log("train/words", distance, prog_bar=True, batch_size=len(batch["prompt"]))
        return loss + self.words_weight * distance

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with fixed noise on people never seen, and the distance to the teacher's words."""
        super().validation_step(batch, batch_idx)
        if self.words_weight:
            self.log("val/words", self.words_distance(batch, "validation"), batch_size=len(batch["prompt"]))

    def words_distance(self, batch: dict[str, Any], split: str) -> torch.Tensor:
        """Return the mean squared distance of the encoder's pseudo-words to the teacher's, by their squared norm."""
        reference, target = self._latents(batch, "reference", split), self._latents(batch, "target", split)
        samples = batch["sample"].cpu()
        noise = sample_noise(self.seed, samples, "noise", tuple(target.shape[1:])).to(target)
        timesteps = low_discrepancy_timesteps(self.seed, samples, len(self.alphas)).to(target.device)
        noisy, vision = noised(target, noise, self.alphas[timesteps]), self._vision_states(batch["reference_pixels"])
        words = self.promptnet(reference, timesteps, vision, noisy_latents=noisy).pseudo_words
        with torch.no_grad():
            goal = self.frozen["teacher"](batch["record"])
        if words.shape != goal.shape:
            raise ValueError(
                f"the encoder makes pseudo-words {tuple(words.shape[1:])}, the teacher {tuple(goal.shape[1:])}: choose "
                "region_kernel_size so that there are as many"
            )
        return F.mse_loss(words, goal, reduction="sum") / goal.square().sum()


def _teacher(folder: Path, width: int) -> RecordEncoder:
    file = folder / "record_encoder" / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"'{folder}' has no record_encoder: train the U-Net by configs/tiny/unet.yaml, or set the "
            "weights words_weight and described_weight to 0"
        )
    state = load_file(file)
    teacher = RecordEncoder(width, 1.0, num_words=len(state["embedding_out.bias"]) // width)
    teacher.load_state_dict(state)
    return teacher.requires_grad_(False).eval()
