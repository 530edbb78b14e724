"""Crop an open image and turn it into the tensor that a model was trained on."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def square(image: Image.Image, size_px: int) -> Image.Image:
    """Return the largest centred square of an image, `size_px` wide."""
    side_px = min(image.size)
    left_px, top_px = (image.width - side_px) // 2, (image.height - side_px) // 2
    box = (left_px, top_px, left_px + side_px, top_px + side_px)
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS, box=box)


def to_pixels(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, H, W) in [-1, 1]."""
    values = torch.from_numpy(np.array(image))  # (H, W, 3)
    return values.permute(2, 0, 1).float() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """Return pixels (3, H, W) in [-1, 1], the inverse of `to_pixels`, as an RGB image; values beyond are cut."""
    values = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def fitted(pixels: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Return the largest centred part of images (B, C, H, W) in the shape (height, width), resized without aliasing."""
    height, width = pixels.shape[-2:]
    if (height, width) == tuple(size_px):
        return pixels
    scale = min(height / size_px[0], width / size_px[1])
    part = [min(side, max(1, round(scale * wanted))) for side, wanted in zip((height, width), size_px, strict=True)]
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    middle = pixels[..., top : top + part[0], left : left + part[1]]
    return F.interpolate(middle, tuple(size_px), mode="bicubic", align_corners=False, antialias=True)


def sharpness(image: Image.Image) -> float:
    """Return the variance of the grey image's Laplacian (Pech-Pacheco et al., 2000): 0 for one colour, hundreds for
    detail.

    It depends on the size of the image, so compare images of one size.
    """
    grey = np.asarray(image.convert("L"), np.float32)  # (H, W)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.var(around - 4 * grey[1:-1, 1:-1], dtype=np.float64))
