"""Distilling an encoder whose words depend on t alone from one that looks at the image being drawn.

S*(r, x_t, t) of a published encoder (arXiv 2305.13579, section 3.1) is another vector for each noisy image, so the
encoder runs in every evaluation. What it says on average over the images and noise of a level t,

    S*(r, t) = E [ S*(r, sqrt(a) x_0 + sqrt(1-a) n, t) ],

needs no x_t: the words of all steps of a drawing are a table, made once (inference/sampling/word_table.py). The squared
distance to that mean is least for the same encoder as the squared distance to the single words is, and has less noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptnet.datasets.stream import sample_noise
from promptnet.inference.sampling.conditions import strided
from promptnet.inference.tuning.loss import noised
from promptnet.models.promptnet import PromptNetModel
from promptnet.training.diffusion_stage import timesteps_of
from promptnet.training.pretrain.stage import PretrainStage


class TableEncoderStage(PretrainStage):
    """`PretrainStage` that learns from a teacher's words, and from the base model's own error if that has a weight.

    Args:
        teacher_dir: folder of the encoder to learn from; None is the base model's own. The new encoder starts from its
            weights unless `start_from` names others.
        num_noises: noisy images of each reference that the teacher's words are averaged over.
        denoising_weight: of the base model's own error beside the distance of the words; 0 leaves out the U-Net, which
            is most of the work.
        pretrain: further arguments of `PretrainStage`.

    Raises:
        ValueError: a number is out of range, or the teacher itself does not look at x_t.
    """

    def __init__(
        self,
        base_dir: str = "checkpoints/tiny",
        export_dir: str = "outputs/checkpoints/table-encoder",
        teacher_dir: str | None = None,
        num_noises: int = 4,
        denoising_weight: float = 0.0,
        start_from: str | None = None,
        **pretrain: Any,
    ) -> None:
        if num_noises < 1 or denoising_weight < 0:
            raise ValueError(
                f"num_noises={num_noises} must be at least 1 and denoising_weight={denoising_weight} at least 0"
            )
        if teacher_dir is None and not Path(base_dir, "promptnet").is_dir():
            raise ValueError(f"base_dir='{base_dir}' is no folder with an encoder in it: say teacher_dir")
        teacher_dir = teacher_dir or f"{base_dir}/promptnet"
        teacher: Any = PromptNetModel.from_pretrained(teacher_dir)
        if not teacher.with_noise:
            raise ValueError(
                f"the encoder in '{teacher_dir}' does not look at x_t: its words are a table already, use it as it is"
            )
        super().__init__(
            base_dir=base_dir,
            export_dir=export_dir,
            start_from=start_from or teacher_dir,
            with_noise=False,
            **pretrain,
        )
        self.save_hyperparameters()
        self.num_noises, self.denoising_weight = num_noises, denoising_weight
        self.frozen["teacher"] = teacher.float().requires_grad_(False).eval()

    @torch.no_grad()
    def mean_words(
        self, reference: Tensor, target: Tensor, vision: Tensor, timesteps: Tensor, samples: Tensor
    ) -> Tensor:
        """The teacher's words (B, L, D), averaged over `num_noises` noisy images at each row's level.

        Args:
            reference: latents (B, C, h, w).
            target: latents of the images being drawn, (B, C, H, W).
            vision: (B, T, V) of the references.
            timesteps: (B,).
            samples: (B,), numbers of the samples, which determine the noise.
        """
        teacher, total = self.frozen["teacher"], torch.zeros(())
        for number in range(self.num_noises):
            noise = sample_noise(self.seed, samples, f"noise {number} of the teacher", tuple(target.shape[1:]))
            noisy = noised(target, noise.to(target), self.alphas[timesteps])
            seen = strided(noisy, *reference.shape[2:]).to(teacher.dtype)
            words = teacher(reference.to(teacher.dtype), timesteps, vision.to(teacher.dtype), noisy_latents=seen)
            total = total + words.pseudo_words.float()
        return total / self.num_noises

    def words_distance(self, batch: dict[str, Any], split: str) -> Tensor:
        """The squared distance of the words to the teacher's mean, as a share of that mean's squared norm."""
        reference, target = self._pair(batch, split)
        vision, samples = self._reference_vision(batch), batch["sample"].cpu()
        timesteps = timesteps_of(self.timesteps, self.seed, samples, len(self.alphas)).to(target.device)
        wanted = self.mean_words(reference, target, vision, timesteps, samples)
        dtype = self.promptnet.dtype
        words = self.promptnet(reference.to(dtype), timesteps, vision.to(dtype)).pseudo_words
        return (words.float() - wanted).square().sum() / wanted.square().sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch's loss."""
        distance, count = self.words_distance(batch, "train"), len(batch["prompt"])
        self.log("train/words", distance, prog_bar=True, batch_size=count)
        if not self.denoising_weight:
            return distance
        error = self.loss(batch, "train")
        self.log("train/loss", error, batch_size=count)
        return distance + self.denoising_weight * error

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The base model's own error, and the distance to the teacher's words, on people never seen in training."""
        super().validation_step(batch, batch_idx)
        self.log("val/words", self.words_distance(batch, "validation"), prog_bar=True, batch_size=len(batch["prompt"]))
