"""What SDXL's U-Net is told beside the prompt's states: a pooled state, and six numbers on the image's size.

The numbers are the size of the image before it was scaled, where it was cropped, and the size that was asked for
(Podell et al., arXiv 2307.01952, section 2.2), all in pixels, height before width.
"""

from typing import Any

import torch
from torch import Tensor


def generated_size_ids(height_px: int, width_px: int, num_rows: int, device: torch.device) -> Tensor:
    """(B, 6) for images that are as large as they seem: neither scaled from a smaller one nor cropped.

    The numbers are always those of the image that the network draws, which is what they meant in its training: where
    that is resized afterwards, it was not told of the size asked for.
    """
    sizes = torch.zeros(num_rows, 6, device=device)
    sizes[:, 0::4], sizes[:, 1::4] = height_px, width_px  # filled there: a copy would wait for the device
    return sizes


def micro_conditions(pooled: Tensor, size_ids: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """The further keyword arguments of SDXL's U-Net.

    Args:
        pooled: (B, P), the second text encoder's.
        size_ids: (B, 6); they stay in float32, as low precision does not hold 1023.
        dtype: the U-Net's.
    """
    sizes = size_ids.to(pooled.device, torch.float32)
    return {"added_cond_kwargs": {"text_embeds": pooled.to(dtype), "time_ids": sizes}}
