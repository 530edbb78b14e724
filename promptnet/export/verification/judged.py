"""Images of an export and of the exact pipeline, as the validation judge reads them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptnet.datasets.avatars.person import IDENTITY_FIELDS
from promptnet.inference.references import decode_latents
from promptnet.inference.subject.subject import Subject
from promptnet.metrics.judge import Judge, Prediction, feature_distance, load_judge, read_images

NUM_IMAGES = 4
NUM_STEPS = 10
SEED = 0


def judge_beside(base: str | Path) -> Path | None:
    """The folder of a base model's validation judge, in its own folder or beside it; None if there is none."""
    place = Path(base).resolve()
    folders = (place / "judges/validation", place.parent / "judges/validation")
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


@dataclass(frozen=True, eq=False)
class Drawing:
    """How images are drawn, by our pipeline and by others alike: plain guidance, from the same noise.

    Args:
        latents: (N, C, h, w), standard normal.
        prompt: with S* in it.
        scale: of guidance.
        rescale: how far guidance is kept from raising the contrast.
        steps: of each image.
    """

    latents: Tensor
    prompt: str
    scale: float
    rescale: float
    steps: int

    @classmethod
    def of(cls, pipe: Any, subject: Subject, prompt: str) -> "Drawing":
        """A few images at the trained size, with the pipeline's own scale."""
        shape = (NUM_IMAGES, *subject.reference_latents.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        defaults = pipe.sampling_defaults
        return cls(noise, prompt, max(defaults.subject_scale, 1.0), defaults.guidance_rescale, NUM_STEPS)

    def record(self) -> dict[str, Any]:
        """As JSON, without the noise."""
        return {"guidance_scale": self.scale, "guidance_rescale": self.rescale, "num_inference_steps": self.steps}


def exact_images(pipe: Any, subject: Subject, how: Drawing) -> Tensor:
    """The images (N, 3, H, W) in [0, 1] of our pipeline."""
    quiet = copy.copy(pipe)  # the caller's keeps its bar
    quiet.set_progress_bar_config(disable=True)
    return quiet(
        how.prompt,
        subject=subject,
        latents=how.latents.to(pipe.unet.device, pipe.unet.dtype),
        num_images_per_prompt=len(how.latents),
        num_inference_steps=how.steps,
        subject_scale=how.scale,
        guidance_rescale=how.rescale,
        class_scale=0.0,
        fusion_steps=0,
        resolution="off",
        output_type="pt",
    ).images.float()


class Reading:
    """The judge's predictions for the exact pipeline's images and the reference, and with them for an export's.

    Args:
        folder: of the judge.
        pipe: our pipeline.
        subject: whose images they are.
        how: they are drawn.
    """

    def __init__(self, folder: Path, pipe: Any, subject: Subject, how: Drawing) -> None:
        self.judge: Judge = load_judge(folder)
        self.exact = self._read(exact_images(pipe, subject, how))
        pixels = decode_latents(pipe.vae, subject.reference_latents[:1].to(pipe.vae.device, pipe.vae.dtype))
        self.reference = self._read(pixels.float().clamp(-1, 1) / 2 + 0.5).records[0]

    def of(self, images: Tensor) -> dict[str, float]:
        """What the judge says of an export's images.

        Returns:
            `identity` and `identity_exact`: share of the reference's identity fields that are read in the export's
            images, and in the exact ones; `same_fields`: share that is read alike in both; `distance`: 1 - cos of the
            judge's features of both.
        """
        found = self._read(images)
        reference = [self.reference] * len(images)
        return {
            "identity": share_of_fields(found.records, reference),
            "identity_exact": share_of_fields(self.exact.records, reference),
            "same_fields": share_of_fields(found.records, self.exact.records),
            "distance": float(feature_distance(found.features, self.exact.features).mean()),
        }

    def _read(self, images: Tensor) -> Prediction:
        return read_images(self.judge, [_to_pil(image) for image in images])


def share_of_fields(records: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]) -> float:
    """The share of identity fields that two lists of records have alike, those that the judge knows."""
    pairs = [
        (record[name], other[name])
        for record, other in zip(records, others, strict=True)
        for name in IDENTITY_FIELDS
        if name in record and name in other
    ]
    return float(np.mean([one == other for one, other in pairs])) if pairs else float("nan")


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())
