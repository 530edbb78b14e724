"""How an image was made: cropped, scaled, shifted, mirrored, recompressed, recoloured, bordered, noisy, of few pixels.

References that the encoder trains on, and those that robustness is measured with, go through here.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

ZOOM = (0.7, 1.4)
"""Range of the factor by which a frame is scaled."""
SHIFT = 0.2
"""Largest shift, as a share of the side."""


@dataclass(frozen=True)
class Frame:
    """One way an image may come to us; the default changes nothing.

    Attributes:
        zoom: factor of the size of what is shown.
        shift_x: share of the side, to the right.
        shift_y: share of the side, downwards.
        mirrored: left and right exchanged.
        border: share of the side that a border takes on each side.
        border_color: of the border.
        small_px: side through which the image went; 0 for none.
        jpeg_quality: 1 to 95; 0 for no compression.
        brightness: factor.
        contrast: factor.
        saturation: factor.
        noise: standard deviation of normal noise, in steps of 255.
        noise_seed: of that noise.
    """

    zoom: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    mirrored: bool = False
    border: float = 0.0
    border_color: str = "#ffffff"
    small_px: int = 0
    jpeg_quality: int = 0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0

    def __call__(self, image: Image.Image, fill: str) -> Image.Image:
        """Return a square image as this frame shows it.

        Args:
            image: square, RGB.
            fill: colour of what lies outside the image, its background.
        """
        side = image.width
        image = ImageOps.mirror(image) if self.mirrored else image
        image = self._moved(image, fill)
        if self.border:
            width = round(self.border * side)
            inner = image.resize((side - 2 * width, side - 2 * width), Image.Resampling.LANCZOS)
            image = ImageOps.expand(inner, width, self.border_color)
        for enhance, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            image = enhance(image).enhance(factor) if factor != 1 else image
        if self.small_px:
            image = image.resize((self.small_px, self.small_px), Image.Resampling.LANCZOS)
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        image = self._noisy(image) if self.noise else image
        return self._compressed(image) if self.jpeg_quality else image

    def _moved(self, image: Image.Image, fill: str) -> Image.Image:
        if (self.zoom, self.shift_x, self.shift_y) == (1.0, 0.0, 0.0):
            return image
        side = image.width
        scaled_px = max(1, round(side * self.zoom))
        scaled = image.resize((scaled_px, scaled_px), Image.Resampling.LANCZOS)
        left, top = (round((side - scaled_px) / 2 + side * shift) for shift in (self.shift_x, self.shift_y))
        canvas = Image.new("RGB", image.size, fill)
        canvas.paste(scaled, (left, top))
        return canvas

    def _noisy(self, image: Image.Image) -> Image.Image:
        values = np.asarray(image, np.float32)
        values = values + self.noise * np.random.default_rng(self.noise_seed).standard_normal(values.shape, np.float32)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))

    def _compressed(self, image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.jpeg_quality)
        return Image.open(file).convert("RGB")


def sample_frame(rng: random.Random, *, plain: float = 0.2) -> Frame:
    """Draw a frame: none with probability `plain`, else placement and any of the other changes.

    Args:
        rng: the source of randomness.
        plain: probability of the image as it is.
    """
    if rng.random() < plain:
        return Frame()
    zoom = ZOOM[0] * (ZOOM[1] / ZOOM[0]) ** rng.random()
    reach = min(SHIFT, 0.08 + 0.6 * abs(zoom - 1))  # a shift by a fifth of a plain frame cuts the face
    reach = SHIFT if rng.random() < 0.2 else reach
    jitter = (lambda by: rng.uniform(1 - by, 1 + by)) if rng.random() < 0.3 else (lambda by: 1.0)
    return Frame(
        zoom=zoom,
        shift_x=rng.uniform(-reach, reach),
        shift_y=rng.uniform(-reach, reach),
        mirrored=rng.random() < 0.25,
        border=rng.uniform(0.02, 0.1) if rng.random() < 0.1 else 0.0,
        border_color=rng.choice(("#ffffff", "#000000", "#808080")),
        small_px=rng.randint(32, 60) if rng.random() < 0.2 else 0,
        jpeg_quality=rng.randint(40, 90) if rng.random() < 0.3 else 0,
        brightness=jitter(0.05),
        contrast=jitter(0.08),
        saturation=jitter(0.1),
        noise=rng.uniform(1, 8) if rng.random() < 0.2 else 0.0,
        noise_seed=rng.getrandbits(32),
    )
