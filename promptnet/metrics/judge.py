"""Predictions of a judge (an attribute classifier): fields, features, and distances to the true images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from promptnet.metrics.scores import Record
from promptnet.models.judge import JUDGE_SIZE_PX, JudgeReading

if TYPE_CHECKING:
    from promptnet.models.judge import AvatarJudge

Array = npt.NDArray[np.float64]


class Judge(Protocol):
    """Interface of `promptnet.models.judge.AvatarJudge`."""

    def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
        """Predict the record of each image (B, 3, 64, 64) in [-1, 1]."""
        ...

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features that distances are computed on, (B, F)."""
        ...


class ExactJudge(Protocol):
    """The part of `promptnet.models.judge.AvatarJudge` that sees more than words."""

    def look(self, pixels: torch.Tensor) -> JudgeReading:
        """Read words, exact values and shape from images (B, 3, 64, 64) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Prediction:
    """A judge's predictions for some images."""

    records: list[Record]
    features: Array  # (N, F)


def load_judge(folder: Path, device: str | torch.device | None = None) -> "AvatarJudge":
    """Load a judge for reading."""
    from promptnet.models.judge import AvatarJudge

    judge: Any = AvatarJudge.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
    return judge.float().to(device or "cpu")  # files may hold half precision


@torch.no_grad()
def read_images(
    judge: Judge, images: Sequence[Image.Image], device: str | torch.device | None = None, batch: int = 64
) -> Prediction:
    """Predict the fields and features of images of any size."""
    records: list[Record] = []
    features: list[torch.Tensor] = []
    for pixels in _batches(images, device, batch):
        records += judge.read(pixels)
        features.append(judge.features(pixels).double().cpu())
    return Prediction(records, torch.cat(features).numpy())


@torch.no_grad()
def look_at(
    judge: ExactJudge, images: Sequence[Image.Image], device: str | torch.device | None = None, batch: int = 64
) -> JudgeReading:
    """Read words, exact values and shapes of images of any size, on the CPU."""
    readings = [judge.look(pixels) for pixels in _batches(images, device, batch)]
    words = {name: torch.cat([reading.words[name].cpu() for reading in readings]) for name in readings[0].words}
    exact, shape = (torch.cat([getattr(each, name).cpu() for each in readings]) for name in ("exact", "shape"))
    return JudgeReading(words, exact, shape)


def _batches(images: Sequence[Image.Image], device: str | torch.device | None, batch: int) -> Iterator[torch.Tensor]:
    """Yield images as (B, 3, 64, 64) in [-1, 1]."""
    for start in range(0, len(images), batch):
        sized = [_sized(image) for image in images[start : start + batch]]
        yield to_pixels(sized).to(device or "cpu")


def _sized(image: Image.Image) -> Image.Image:
    size = (JUDGE_SIZE_PX, JUDGE_SIZE_PX)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stack images as (B, 3, H, W) float32 in [-1, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()  # (B, 3, H, W)


def feature_distance(features: Array, true_features: Array) -> Array:
    """Return 1 - cos(f(image), f(truth)) in the judge's feature space, image by image: (N, F), (N, F) -> (N,).

    0 is the true image; the scale depends on the judge, so compare only figures of one judge.
    """
    products = (features * true_features).sum(axis=1)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(true_features, axis=1)
    # An image without any active feature has distance 1. Rounding must not go below 0.
    return np.maximum(1 - np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0), 0.0)


def pixel_l1(images: Sequence[Image.Image], truths: Sequence[Image.Image]) -> Array:
    """Return the mean absolute difference of colour values in [0, 1], image by image: (N,)."""
    difference = (to_pixels(images) - to_pixels(truths)).abs() / 2
    return difference.mean(dim=(1, 2, 3)).double().numpy()
