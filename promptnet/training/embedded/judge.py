"""The judges of the embedded model: trained on real renders only, slightly shifted, blurred and dimmed."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from promptnet.datasets.avatars.render import FIELDS
from promptnet.datasets.stream import sample_noise, sample_rng
from promptnet.models.judge import AvatarJudge
from promptnet.training.stage import Stage, channels_last, save_half


class JudgeStage(Stage):
    """Cross-entropy over the record's fields.

    Args:
        width: of `AvatarJudge`.
        max_shift_px: largest random shift, either way.
        seed: of the augmentation.
        export_dir: folder the judge is written to when training ends.
    """

    def __init__(
        self,
        width: int = 48,
        max_shift_px: int = 2,
        seed: int = 0,
        export_dir: str = "checkpoints/judges/validation",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.save_hyperparameters()
        self.max_shift_px, self.seed, self.export_dir = max_shift_px, seed, export_dir
        fields = {field: list(values) for field, values in FIELDS.items()}
        self.judge = channels_last(AvatarJudge(fields, width=width))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        pixels = self._augmented(batch["pixels"], batch["sample"])
        loss = self.judge.classifiers.loss(self.judge.features(pixels), batch["codes"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(pixels))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Accuracy a field on unseen people."""
        accuracies = self.judge.classifiers.accuracies(self.judge.features(batch["pixels"]), batch["codes"])
        self.log_dict({f"val/{field}": value for field, value in accuracies.items()}, batch_size=len(batch["codes"]))
        self.log(
            "val/fields", torch.stack(list(accuracies.values())).mean(), prog_bar=True, batch_size=len(batch["codes"])
        )

    def _augmented(self, pixels: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Each image shifted, half of them blurred, with a little noise and another brightness."""
        rows = []
        for row, sample in zip(pixels, samples, strict=True):
            rng = sample_rng(self.seed, int(sample), "augment")
            shift = (
                rng.randint(-self.max_shift_px, self.max_shift_px),
                rng.randint(-self.max_shift_px, self.max_shift_px),
            )
            row = torch.roll(row, shift, dims=(1, 2))
            if rng.random() < 0.5:
                row = torch.lerp(row, F.avg_pool2d(row, 3, 1, 1, count_include_pad=False), rng.random())
            rows.append(row * rng.uniform(0.9, 1.05))
        noise = sample_noise(self.seed, samples, "augment", tuple(pixels.shape[1:])).to(pixels)
        return (torch.stack(rows) + 0.04 * noise).clamp(-1, 1).contiguous(memory_format=torch.channels_last)

    def on_train_end(self) -> None:
        """Write the judge."""
        if self.trainer.is_global_zero:
            save_half(self.judge, self.export_dir)
