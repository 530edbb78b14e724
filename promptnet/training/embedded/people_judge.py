"""The judges of people without end. They are instruments: they see every style, drawing and colour, held out or not."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from promptnet.datasets.avatars.person import COLOR_FIELDS, FIELDS
from promptnet.datasets.avatars.vectors import NUM_EXACT
from promptnet.models.judge import AvatarJudge
from promptnet.training.embedded.clip import contrastive_loss
from promptnet.training.embedded.judge import JudgeStage
from promptnet.training.stage import channels_last

_SCALE = 10.0  # of the cosines of shapes


class PeopleJudgeStage(JudgeStage):
    """Words by cross-entropy, exact colours and geometry by regression, shapes by contrast with recoloured twins.

    Args:
        width: of `AvatarJudge`.
        shape_weight: of the contrastive loss.
        exact_weight: of the regression.
        judge: arguments of `JudgeStage`.
    """

    def __init__(self, width: int = 48, shape_weight: float = 0.3, exact_weight: float = 2.0, **judge: Any) -> None:
        super().__init__(width=width, **judge)
        self.save_hyperparameters()
        self.shape_weight, self.exact_weight = shape_weight, exact_weight
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
            f"val/{f}": (read.words[f].argmax(1) == batch["codes"][:, i]).float().mean() for i, f in enumerate(FIELDS)
        }
        errors = read.exact - batch["exact"]
        colors = errors[:, : 3 * len(COLOR_FIELDS)].unflatten(1, (-1, 3)).norm(dim=2).mean(0) * 50
        nearest = (read.shape @ twin.shape.T).argmax(1) == torch.arange(len(twin.shape), device=twin.shape.device)
        figures = hits | {f"val/error_{field}": colors[place] for place, field in enumerate(COLOR_FIELDS)}
        figures |= {
            "val/geometry": errors[:, 3 * len(COLOR_FIELDS) :].abs().mean(),
            "val/shape_top1": nearest.float().mean(),
            "val/fields": torch.stack(list(hits.values())).mean(),
        }
        self.log_dict(figures, batch_size=len(batch["codes"]))
