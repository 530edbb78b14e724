"""What a judge sees in pictures: the fields it reads, and how far a picture is from the true one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from promptnet.metrics.scores import Record
from promptnet.models.judge import JUDGE_SIZE_PX

Array = npt.NDArray[np.float64]


class Judge(Protocol):
    """What `promptnet.models.judge.AvatarJudge` offers."""

    def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
        """The record read from each picture (B, 3, 64, 64) in [-1, 1]."""
        ...

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The space in which distances are taken, (B, F)."""
        ...


@dataclass(frozen=True)
class Reading:
    """What a judge made of some pictures."""

    records: list[Record]
    features: Array  # (N, F)


def load_judge(folder: Path, device: str | torch.device | None = None) -> Judge:
    """Load a judge for reading."""
    from promptnet.models.judge import AvatarJudge

    judge = AvatarJudge.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
    return judge.to(device or "cpu")  # pyright: ignore[reportArgumentType]  (diffusers' wrapper of `to` has no types)


@torch.no_grad()
def read_pictures(
    judge: Judge, pictures: Sequence[Image.Image], device: str | torch.device | None = None, batch: int = 64
) -> Reading:
    """Let a judge read pictures of any size."""
    records: list[Record] = []
    features: list[torch.Tensor] = []
    for start in range(0, len(pictures), batch):
        sized = [_sized(picture) for picture in pictures[start : start + batch]]
        pixels = to_pixels(sized).to(device or "cpu")  # (B, 3, 64, 64)
        records += judge.read(pixels)
        features.append(judge.features(pixels).double().cpu())
    return Reading(records, torch.cat(features).numpy())


def _sized(picture: Image.Image) -> Image.Image:
    size = (JUDGE_SIZE_PX, JUDGE_SIZE_PX)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def to_pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) float32 in [-1, 1]."""
    stacked = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()  # (B, 3, H, W)


def feature_distance(features: Array, true_features: Array) -> Array:
    """1 - cos(f(picture), f(truth)) in the judge's feature space, picture by picture: (N, F), (N, F) -> (N,).

    0 is the true picture; the order of magnitude of a stranger's picture is the judge's own, so compare rows only.
    """
    products = (features * true_features).sum(axis=1)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(true_features, axis=1)
    # A picture that lights up no feature at all resembles nothing: distance 1. Rounding must not go below 0.
    return np.maximum(1 - np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0), 0.0)


def pixel_l1(pictures: Sequence[Image.Image], truths: Sequence[Image.Image]) -> Array:
    """The mean absolute difference of colour values in [0, 1], picture by picture: (N,)."""
    difference = (to_pixels(pictures) - to_pixels(truths)).abs() / 2
    return difference.mean(dim=(1, 2, 3)).double().numpy()
