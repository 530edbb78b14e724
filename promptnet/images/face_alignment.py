"""Cut an upright square with the face in its centre."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from promptnet.images.face_detection import Face


@dataclass(frozen=True)
class Crop:
    """A square in an image that is to become an image of its own.

    Attributes:
        center_x: of the square, in pixels of the image; 0 is the image's left edge.
        center_y: the same from its upper edge.
        side_px: of the square.
        angle_deg: by how much the square is turned clockwise.
    """

    center_x: float
    center_y: float
    side_px: float
    angle_deg: float


def crop_around(face: Face, margin: float) -> Crop:
    """Return the square around a face whose upper edge is parallel to the line of the eyes.

    Its middle is the box's; its side is the box's longer side and `margin` times that on either side.
    """
    left, top, right, bottom = face.box
    return Crop(
        center_x=(left + right) / 2,
        center_y=(top + bottom) / 2,
        side_px=face.size_px * (1 + 2 * margin),
        angle_deg=eye_angle_deg(face),
    )


def eye_angle_deg(face: Face) -> float:
    """Return the clockwise angle of the line from the left eye to the right one; 0 if they coincide."""
    (left_x, left_y), (right_x, right_y) = face.landmarks[:2]
    if math.hypot(right_x - left_x, right_y - left_y) < 1:
        return 0.0
    return math.degrees(math.atan2(right_y - left_y, right_x - left_x))


def inside_share(crop: Crop, size: tuple[int, int]) -> float:
    """Return the fraction of the square that lies in an image of `size` (width, height), to about a hundredth."""
    steps = (np.arange(64) + 0.5) / 64 - 0.5
    x, y = np.meshgrid(steps * crop.side_px, steps * crop.side_px)
    across, down = math.cos(math.radians(crop.angle_deg)), math.sin(math.radians(crop.angle_deg))
    x, y = crop.center_x + across * x - down * y, crop.center_y + down * x + across * y
    return float(((x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])).mean())


def cut(image: Image.Image, crop: Crop, size_px: int) -> Image.Image:
    """Return the square `crop` of an RGB image, upright and `size_px` wide.

    Where it reaches beyond the image, the image is mirrored at its edge: a plain colour or the stretched edge would
    be a mark that a model learns.
    """
    image, crop = _shrunk(image, crop, size_px)
    turn_deg = crop.angle_deg
    across, down = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
    reach_px = math.ceil(crop.side_px / 2 * (abs(across) + abs(down))) + 2
    left, top = math.floor(crop.center_x) - reach_px, math.floor(crop.center_y) - reach_px
    region = _mirrored(image, left, top, 2 * reach_px + 1)
    drawn_px = max(size_px, math.ceil(crop.side_px))
    step = crop.side_px / drawn_px
    # A pixel (u, v) of the outcome shows center + step * rotation (u - drawn / 2, v - drawn / 2).
    a, b, d, e = step * across, -step * down, step * down, step * across
    x0 = crop.center_x - left - (a + b) * drawn_px / 2
    y0 = crop.center_y - top - (d + e) * drawn_px / 2
    square = region.transform(
        (drawn_px, drawn_px), Image.Transform.AFFINE, (a, b, x0, d, e, y0), Image.Resampling.BICUBIC
    )
    return square if drawn_px == size_px else square.resize((size_px, size_px), Image.Resampling.LANCZOS)


def _shrunk(image: Image.Image, crop: Crop, size_px: int) -> tuple[Image.Image, Crop]:
    """An image so large that turning it pixel by pixel would skip some: shrunk until the square is twice `size_px`."""
    scale = 2 * size_px / crop.side_px
    if scale >= 1:
        return image, crop
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    across, down = size[0] / image.width, size[1] / image.height
    smaller = Crop(crop.center_x * across, crop.center_y * down, crop.side_px * scale, crop.angle_deg)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), smaller


def _mirrored(image: Image.Image, left: int, top: int, side_px: int) -> Image.Image:
    """A square of an image that goes on mirrored, again and again, beyond its edges."""
    pixels = np.asarray(image)  # (H, W, 3)
    rows = _reflected(np.arange(top, top + side_px), image.height)
    columns = _reflected(np.arange(left, left + side_px), image.width)
    return Image.fromarray(pixels[rows[:, None], columns[None, :]])


def _reflected(places: np.ndarray, length: int) -> np.ndarray:
    """... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..."""
    places = places % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)
