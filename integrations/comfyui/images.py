"""ComfyUI's IMAGE, (B, H, W, C) float in [0, 1], and images of other kinds."""

import torch
from PIL import Image
from torch import Tensor


def to_pil(image: Tensor) -> list[Image.Image]:
    """The images of a batch; an alpha channel is left out.

    Raises:
        ValueError: it is no IMAGE, it is empty, or a value is no number.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4) or not image.numel():
        shape = list(getattr(image, "shape", []))
        raise ValueError(f"image must be (B, H, W, 3), at least one image, and is {shape}: link an IMAGE.")
    if not image.isfinite().all():
        raise ValueError("image has values that are no numbers: look at the node that it comes from.")
    pixels = (image[..., :3].clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


def to_comfy(images: Tensor) -> Tensor:
    """An IMAGE (B, H, W, 3) of images (B, 3, H, W) in [0, 1]."""
    return images.permute(0, 2, 3, 1).float().cpu().contiguous()
