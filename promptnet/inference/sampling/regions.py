"""Where each of several people stands in one image: boxes or masks, as one weight map a person.

    e = e_u + w_s sum_i M_i (e_s,i - e_u) + w_c (e_c - e_u),    sum_i M_i = 1 everywhere

Each e_s,i has one person's words and LoRA layers alone, and class words for the others, so that no prediction mixes
two people.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

HALVES = "halves"
_GRID = 256  # cells a side of a box's mask; maps are averages over them
Region = Sequence[float] | Tensor | Image.Image


def region_masks(regions: str | Sequence[Region] | None, num_subjects: int) -> list[Tensor]:
    """Return a mask (H, W) in [0, 1] for each subject; none without regions.

    Args:
        regions: "halves" for columns of one width from left to right; or for each subject a box (left, top, right,
            bottom) in fractions of the image, or a mask: an image or (H, W), 1 or white where the subject is.
        num_subjects: of the prompt.

    Raises:
        ValueError: they are not as many as subjects, there are fewer than two, or one is none.
    """
    if regions is None:
        return []
    if num_subjects < 2:
        raise ValueError(f"regions are for S1* and S2* in one prompt, but there are {num_subjects} subjects.")
    if isinstance(regions, str):
        if regions != HALVES:
            raise ValueError(f"regions={regions!r} must be {HALVES!r}, or a box or mask for each subject.")
        edges = [index / num_subjects for index in range(num_subjects + 1)]
        regions = [(left, 0.0, right, 1.0) for left, right in pairwise(edges)]
    if not isinstance(regions, Sequence) or len(regions) != num_subjects:
        raise ValueError(f"{num_subjects} subjects need a region each, but regions={regions!r}.")
    return [_mask(region) for region in regions]


def _mask(region: Any) -> Tensor:
    if isinstance(region, Image.Image):
        region = torch.from_numpy(np.asarray(region.convert("L"), dtype=np.float32) / 255)
    if isinstance(region, Tensor):
        if region.ndim != 2 or not region.numel() or not 0 <= float(region.min()) <= float(region.max()) <= 1:
            raise ValueError(f"A region's mask must be (H, W) in [0, 1], but is {tuple(region.shape)}.")
        found = region.float()
    else:
        found = _box(region)
    if not found.any():
        raise ValueError("A region is empty: there would be no place for its subject.")
    return found


def _box(box: Any) -> Tensor:
    numbers = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else []
    if len(numbers) != 4 or not all(isinstance(n, (int, float)) and 0 <= n <= 1 for n in numbers):
        raise ValueError(f"A region must be a mask or (left, top, right, bottom) in fractions, not {box!r}.")
    left, top, right, bottom = numbers
    if left >= right or top >= bottom:
        raise ValueError(f"The region {box!r} has no area: give (left, top, right, bottom).")
    return _inside(top, bottom)[:, None] * _inside(left, right)[None, :]


def _inside(start: float, end: float) -> Tensor:
    """How much of each of the grid's cells lies between two fractions."""
    cells = torch.arange(_GRID, dtype=torch.float32)
    return (torch.clamp(cells + 1, max=end * _GRID) - torch.clamp(cells, min=start * _GRID)).clamp(0, 1)


def region_maps(masks: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Return the weight map of each subject (N, h, w): its share of each cell; they sum to 1 everywhere.

    Cells in nobody's region belong to all alike.

    Args:
        masks: N masks, each (H, W).
        height: of the latents.
        width: of the latents.
    """
    small = torch.stack([F.interpolate(mask[None, None], (height, width), mode="area")[0, 0] for mask in masks])
    total = small.sum(dim=0, keepdim=True)
    return torch.where(total > 0, small / total.clamp_min(torch.finfo(small.dtype).tiny), 1 / len(masks))
