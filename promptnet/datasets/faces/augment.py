"""Flips and colour jitter of whole samples, as functions of the sample number.

One draw serves reference and target, so that the encoder never learns that a subject's colours do not matter. Images
are mirrored each on its own, except where reference and target are the same image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torchvision.transforms import functional as transforms

from promptnet.datasets.stream import sample_rng


@dataclass(frozen=True)
class Colours:
    """Factors of one sample: 1 leaves brightness, contrast and saturation as they are; hue is a shift in turns."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


@dataclass(frozen=True)
class Augmentation:
    """How samples are varied.

    Args:
        flip: probability that an image is mirrored.
        colour_jitter: j; brightness, contrast and saturation change by factors in 1 - j to 1 + j, hue by up to j / 10
            turns. 0 for none.
        seed: of the draws.
    """

    flip: float = 0.5
    colour_jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip} must be a probability")
        if not 0 <= self.colour_jitter < 1:
            raise ValueError(f"colour_jitter={self.colour_jitter} must be at least 0 and below 1")

    def flipped(self, sample: int, role: str) -> bool:
        """Whether the "target" or "reference" of a sample is mirrored."""
        return sample_rng(self.seed, sample, f"flip {role}").random() < self.flip

    def colours(self, sample: int) -> Colours:
        """The factors of a sample."""
        jitter = self.colour_jitter
        if jitter == 0:
            return Colours()
        rng = sample_rng(self.seed, sample, "colours")
        factors = [1 + jitter * rng.uniform(-1, 1) for _ in range(3)]
        return Colours(*factors, hue=jitter / 10 * rng.uniform(-1, 1))


def recoloured(image: Image.Image, colours: Colours) -> Image.Image:
    """An image with brightness, contrast, saturation and hue changed, in this order."""
    if colours == Colours():
        return image
    changed: Any = image  # torchvision types tensors alone, and takes either
    for adjust, factor in (
        (transforms.adjust_brightness, colours.brightness),
        (transforms.adjust_contrast, colours.contrast),
        (transforms.adjust_saturation, colours.saturation),
    ):
        changed = adjust(changed, factor)
    if colours.hue:
        changed = transforms.adjust_hue(changed, colours.hue)
    return changed


def fitted(image: Image.Image, width_px: int, height_px: int) -> tuple[Image.Image, tuple[int, int]]:
    """The largest centred part of that shape, resized; and its top left corner (top, left) in resized pixels.

    The corner is what SDXL's crop condition speaks of.
    """
    scale = max(width_px / image.width, height_px / image.height)
    part_width, part_height = width_px / scale, height_px / scale
    left, top = (image.width - part_width) / 2, (image.height - part_height) / 2
    box = (max(0, left), max(0, top), min(image.width, left + part_width), min(image.height, top + part_height))
    resized = image.resize((width_px, height_px), Image.Resampling.LANCZOS, box=box)
    return resized, (round(top * scale), round(left * scale))
