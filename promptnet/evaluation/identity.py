"""Compare who is in images: similarities by a face embedder for photographs, or by the judge for avatars."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from promptnet.datasets.image_files import image_files
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.images.load import open_image
from promptnet.metrics.identity import (
    FaceIdentity,
    IdentityScorer,
    JudgeIdentity,
    load_face_embedder,
    load_validation_judge,
)


@dataclass(frozen=True)
class Similarities:
    """What was compared.

    Args:
        ones: names of the first images.
        others: names of the second.
        values: (A, B), the cosine of each first image with each second.
    """

    ones: tuple[str, ...]
    others: tuple[str, ...]
    values: torch.Tensor

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "a": list(self.ones),
            "b": list(self.others),
            "similarities": self.values.tolist(),
            "mean": float(self.values.mean()),
            "best_of_each": [float(row.max()) for row in self.values],
        }


def images_in(path: Path) -> list[Path]:
    """Return an image, or the images of a folder in order.

    Raises:
        ValueError: there is none.
    """
    found = image_files(path, deep=False) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise ValueError(f"'{path}' is no image and no folder that holds images: check its name")
    return found


def load_scorer(embedder: str, face_weights: Path | None = None, base: Path | None = None) -> IdentityScorer:
    """Load an identity scorer; nothing is downloaded.

    Args:
        embedder: "face" or "judge".
        face_weights: of the face embedder; None looks where facenet-pytorch keeps them.
        base: folder of the base model, beside which the validation judge of avatars lies.

    Raises:
        ValueError: a file is missing.
    """
    if embedder == "face":
        return FaceIdentity(load_face_embedder(face_weights))
    if base is None:
        raise ValueError("the judge of avatars lies beside a base model: base=")
    return JudgeIdentity(load_validation_judge(judge_folder(base, "validation")))


def compare_identities(one: Path, other: Path, scorer: IdentityScorer, batch: int = 16) -> Similarities:
    """Compare every image of one file or folder with every image of another.

    Args:
        one: an image, or a folder of images.
        other: the same.
        scorer: of identity.
        batch: images at a time.

    Raises:
        ValueError: there is no image.
    """
    ones, others = images_in(one), images_in(other)
    first, second = (_vectors(paths, scorer, batch) for paths in (ones, others))
    return Similarities(tuple(p.name for p in ones), tuple(p.name for p in others), first @ second.mT)


def _vectors(paths: Sequence[Path], scorer: IdentityScorer, batch: int) -> torch.Tensor:
    parts = [paths[start : start + batch] for start in range(0, len(paths), batch)]
    return torch.cat([scorer.identity([open_image(path) for path in part]).float().cpu() for part in parts])
