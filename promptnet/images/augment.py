"""Views of one picture: moved and scaled on a canvas, so that tuning learns the person and not the frame.

A view comes with a mask of where the picture lies; around it the canvas repeats the picture's border, and what is
learnt there must not count (ProFusion, arXiv 2305.13579, section 3.3).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """Where the picture lies on a canvas of its own size: scaled to `size_px`, its corner at (`top_px`, `left_px`)."""

    size_px: int
    top_px: int = 0
    left_px: int = 0
    flipped: bool = False


def sample_views(
    num_views: int,
    canvas_px: int,
    *,
    scales: tuple[float, float] = (0.75, 1.15),
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> list[View]:
    """Views with a uniform scale, and a uniform place where the smaller of picture and canvas lies in the larger.

    Args:
        num_views: how many.
        canvas_px: side of the canvas, and of the unscaled picture.
        scales: smallest and largest side of the picture, in canvas sides. Above 1 the picture is cropped.
        flip: whether to mirror half of them.
        generator: a CPU generator.

    Raises:
        ValueError: `scales` is not an interval within 0.25 ... 4.
    """
    low, high = scales
    if not 0.25 <= low <= high <= 4:
        raise ValueError(f"augmentation scales {scales} must be (low, high) with 0.25 <= low <= high <= 4")
    draws = torch.rand(num_views, 4, generator=generator, dtype=torch.float64).tolist()
    return [_view(canvas_px, low + (high - low) * u, v, w, flip and f < 0.5) for u, v, w, f in draws]


def _view(canvas_px: int, scale: float, down: float, right: float, flipped: bool) -> View:
    size_px = round(canvas_px * scale)
    room_px = canvas_px - size_px  # negative where the picture is larger and moves behind the canvas
    return View(size_px, round(room_px * down), round(room_px * right), flipped)


def place(pixels: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """One view of `pixels` (C, S, S): the canvas (C, S, S) and its mask (1, S, S), 1 where the picture lies."""
    side_px = pixels.shape[-1]
    scaled = F.interpolate(pixels[None], (view.size_px, view.size_px), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    scaled = scaled.flip(-1) if view.flipped else scaled
    rows, rows_inside = _sources(side_px, view.top_px, view.size_px, pixels.device)
    columns, columns_inside = _sources(side_px, view.left_px, view.size_px, pixels.device)
    mask = (rows_inside[:, None] & columns_inside[None, :])[None].to(pixels.dtype)
    return scaled[:, rows][:, :, columns], mask


def _sources(side_px: int, start_px: int, size_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each canvas row the picture's row that it shows, and whether it is one and not the repeated border."""
    rows = torch.arange(side_px, device=device) - start_px
    return rows.clamp(0, size_px - 1), (rows >= 0) & (rows < size_px)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A pixel mask (B, 1, H, W) at the latents' size: 1 for cells that lie wholly in the picture."""
    return (F.avg_pool2d(mask, factor) > 1 - 1e-6).to(mask.dtype)  # (B, 1, H/factor, W/factor)
