"""The judges of the embedded model: trained on real renders only, slightly shifted, blurred and dimmed.

They are instruments: they see every style, drawing and colour, held out or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from promptnet.datasets.avatars.person import FIELDS
from promptnet.datasets.avatars.vectors import NUM_EXACT
from promptnet.datasets.stream import sample_noise, sample_rng
from promptnet.models.judge import AvatarJudge
from promptnet.training.embedded.clip import contrastive_loss, exact_errors
from promptnet.training.stage import Stage, channels_last, save_half

_SCALE = 10.0  # of the cosines of shapes


class JudgeStage(Stage):
    """Words by cross-entropy, exact colours and geometry by regression, shapes by contrast with recoloured twins.

    Args:
        width: of `AvatarJudge`.
        shape_weight: of the contrastive loss.
        exact_weight: of the regression.
        max_shift_px: largest random shift, either way.
        seed: of the augmentation.
        export_dir: folder the judge is written to when training ends.
    """

    def __init__(
        self,
        width: int = 48,
        shape_weight: float = 0.3,
        exact_weight: float = 2.0,
        max_shift_px: int = 2,
        seed: int = 0,
        export_dir: str = "checkpoints/judges/validation",
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.save_hyperparameters()
        self.shape_weight, self.exact_weight = shape_weight, exact_weight
        self.max_shift_px, self.seed, self.export_dir = max_shift_px, seed, export_dir
        fields = {field: list(values) for field, values in FIELDS.items()}
        self.judge = channels_last(AvatarJudge(fields, width=width, num_exact=NUM_EXACT))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One batch's loss."""
        pixels = torch.cat([self._augmented(batch[name], batch["sample"]) for name in ("pixels", "twin_pixels")])
        features = self.judge.features(pixels)
        mine, twins = self.judge.shape(features).chunk(2)
        codes = torch.cat([batch["codes"], batch["twin_codes"]])
        words = self.judge.classifiers.loss(features, codes)
        truth = torch.cat([batch["exact"], batch["twin_exact"]])
        exact = F.smooth_l1_loss(self.judge.exact(features), truth, beta=0.1)
        shape = contrastive_loss(mine, twins, mine.new_tensor(_SCALE))
        self.log_dict({"train/words": words, "train/exact": exact, "train/shape": shape}, batch_size=len(codes))
        return words + self.exact_weight * exact + self.shape_weight * shape

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Accuracy a field, errors of colours (CIELAB) and geometry, and how often a twin's shape is the nearest."""
        read, twin = self.judge.look(batch["pixels"]), self.judge.look(batch["twin_pixels"])
        hits = {
            f"val/{field}": (read.words[field].argmax(1) == batch["codes"][:, place]).float().mean()
            for place, field in enumerate(FIELDS)
        }
        nearest = (read.shape @ twin.shape.T).argmax(1) == torch.arange(len(twin.shape), device=twin.shape.device)
        figures = {**hits, **exact_errors(read.exact - batch["exact"]), "val/shape_top1": nearest.float().mean()}
        self.log_dict(figures, batch_size=len(batch["codes"]))
        self.log("val/fields", torch.stack(list(hits.values())).mean(), prog_bar=True, batch_size=len(batch["codes"]))

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
