"""`--crop-face`: the square around the largest face of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN = 0.5
MIN_SCORE = 0.95
MAX_SIDE_PX = 2048


def face_square(path: Path) -> Image:
    """Return the square around the largest face, upright, with the space around it that `promptnet prepare` leaves.

    Raises:
        ModuleNotFoundError: the extra faces is not installed.
        ValueError: the image cannot be used, or shows no face that the detector is sure of.
    """
    from promptnet.images.face_alignment import crop_around, cut
    from promptnet.images.face_detection import FaceDetector
    from promptnet.images.load import open_image

    image = open_image(path)
    found = [face for face in FaceDetector().detect(image) if face.score >= MIN_SCORE]
    if not found:
        raise ValueError(f"'{path}' shows no face that the detector is sure of: crop it yourself, without --crop-face")
    crop = crop_around(max(found, key=lambda face: face.size_px), MARGIN)
    return cut(image, crop, min(round(crop.side_px), MAX_SIDE_PX))
