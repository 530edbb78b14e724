"""What an encoder knows: how far an image lies from those it was trained on, and how alike two images are.

An encoder answers every image with a person, a stranger to its training too: then somebody else is drawn, and nothing
says so. The image encoder's features of the training's images are nearly normal, so the Mahalanobis distance to them
tells an image of that kind from another (Lee et al., arXiv 1807.03888). In the same whitened space the cosine of two
images says how alike they are in what the encoder reads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from promptnet.io.artifacts import FileKind, Tensors, Texts

FILE_NAME = "familiarity.safetensors"
"""Beside the encoder's weights."""

Verdict = Literal["good", "doubtful", "foreign"]


class FamiliarityError(ValueError):
    """A file that says what an encoder knows, and cannot be used."""


KIND = FileKind(
    key="promptnet.familiarity",
    version=1,
    max_bytes=64 * 1024 * 1024,
    error=FamiliarityError,
    title="Familiarity file",
    noun="a familiarity",
    maker="promptnet calibrate",
    again="calibrate the encoder again",
    mode=0o644,
)


_FOR_DISTANCES = 1e-3
_FOR_LIKENESS = 0.1
"""Added to every variance, as shares of their mean: rare directions tell strangers, common ones tell people apart."""


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The images that an encoder was trained on, as a normal distribution of features, and where its knowledge ends.

    Args:
        mean: (V,), of the image encoder's states, averaged over an image's tokens.
        variances: (V,), of the distribution along its principal directions.
        directions: (V, V), these directions, a column each.
        doubtful: distance beyond which an image is doubtful.
        foreign: distance beyond which it is foreign; None where no foreign images were shown.
        alike: likeness below which a person drawn again is doubtful; None where nobody was drawn.

    Raises:
        FamiliarityError: shapes do not match, or a number is out of order.
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor
    doubtful: float = math.inf
    foreign: float | None = None
    alike: float | None = None

    def __post_init__(self) -> None:
        width = self.mean.shape[0] if self.mean.ndim == 1 else 0
        shapes = {name: list(getattr(self, name).shape) for name in ("mean", "variances", "directions")}
        if not width or shapes != {"mean": [width], "variances": [width], "directions": [width, width]}:
            raise FamiliarityError(f"The shapes must be (V,), (V,) and (V, V), not {shapes}.")
        if not all(getattr(self, name).isfinite().all() for name in shapes) or not self.variances.sum() > 0:
            raise FamiliarityError("The distribution must be finite, and wider than a point.")
        if not self.doubtful > 0 or (self.foreign is not None and not self.doubtful <= self.foreign):
            raise FamiliarityError(f"0 < doubtful={self.doubtful} <= foreign={self.foreign} does not hold.")

    @classmethod
    def fit(cls, vision_states: Tensor) -> Familiarity:
        """Fit the distribution to what an image encoder makes of images of the kind that the encoder knows.

        Args:
            vision_states: (N, T, V) with N above 1; several times V makes a good fit.

        Raises:
            FamiliarityError: there are fewer than two images, or all are the same.
        """
        features = _features(vision_states)
        if len(features) < 2:
            raise FamiliarityError(f"{len(features)} images are no distribution: show two at least, better hundreds.")
        variances, directions = torch.linalg.eigh(torch.cov(features.T))
        return cls(features.mean(0), variances.clamp_min(0), directions)

    def distances(self, vision_states: Tensor) -> Tensor:
        """Return Mahalanobis distances (K,) over sqrt(V) of states (K, T, V): about 1 for what the encoder knows.

        Raises:
            FamiliarityError: they are of another width.
        """
        return self._whitened(vision_states, _FOR_DISTANCES).norm(dim=1) / math.sqrt(len(self.mean))

    def likeness(self, vision_states: Tensor, others: Tensor) -> Tensor:
        """Return how alike images are, pair by pair (K,): 1 for the same image, about 0 for two people.

        Raises:
            FamiliarityError: their states are of another width.
        """
        pair = (self._whitened(states, _FOR_LIKENESS) for states in (vision_states, others))
        return torch.cosine_similarity(*pair, dim=1)

    def _whitened(self, vision_states: Tensor, shrinkage: float) -> Tensor:
        """Features (K, V) along the principal directions, each over its standard deviation."""
        features = _features(vision_states)
        if features.shape[1] != len(self.mean):
            raise FamiliarityError(f"States are {features.shape[1]} wide, and this encoder's {len(self.mean)}.")
        variances = self.variances.to(features)
        scales = (variances + shrinkage * variances.mean()).rsqrt()
        return (features - self.mean.to(features)) @ self.directions.to(features) * scales

    def verdict(self, distance: float, likeness: float | None = None) -> Verdict:
        """Judge an image by its distance and, where it was drawn again, by that image's likeness to it."""
        if self.foreign is not None and distance > self.foreign:
            return "foreign"
        unlike = likeness is not None and self.alike is not None and likeness < self.alike
        return "doubtful" if unlike or distance > self.doubtful else "good"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into an encoder's folder."""
        texts = {"doubtful": self.doubtful, "foreign": self.foreign, "alike": self.alike}
        tensors = {name: getattr(self, name).float() for name in ("mean", "variances", "directions")}
        KIND.save(Path(folder) / FILE_NAME, texts, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Familiarity:
        """Read such a file.

        Raises:
            FamiliarityError: it is missing, broken, altered or something else.
        """
        return KIND.load(Path(path), cls._made)

    @classmethod
    def _made(cls, texts: Texts, tensors: Tensors) -> Familiarity:
        return cls(**tensors, **texts)


def _features(vision_states: Tensor) -> Tensor:
    """Average over tokens, on the CPU in double precision: (K, T, V) -> (K, V)."""
    return vision_states.detach().cpu().double().mean(dim=1)


def find_familiarity(encoder: str | os.PathLike[str], options: Mapping[str, Any]) -> Familiarity | None:
    """Return what lies beside an encoder's weights; None where nothing does.

    Args:
        encoder: a folder, or a repository's id on the Hub.
        options: of `from_pretrained`: subfolder, revision, cache_dir, token, local_files_only.

    Raises:
        FamiliarityError: there is one, and it cannot be used.
    """
    subfolder = options.get("subfolder") or ""
    if os.path.isdir(encoder):
        path = Path(encoder) / subfolder / FILE_NAME
        return Familiarity.load(path) if path.exists() else None
    from huggingface_hub import try_to_load_from_cache

    name = f"{subfolder}/{FILE_NAME}" if subfolder else FILE_NAME
    cached = try_to_load_from_cache(str(encoder), name, options.get("cache_dir"), options.get("revision"))
    return Familiarity.load(cached) if isinstance(cached, str) else None
