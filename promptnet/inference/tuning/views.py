"""What one person is tuned on: their images, moved and scaled views of them, and batches of these under noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptnet.images.crop import square, to_image, to_pixels
from promptnet.inference.references import EncodedReferences, encode_pixels, encode_references
from promptnet.inference.tuning.config import LoopConfig
from promptnet.inference.tuning.loss import training_timesteps

# Views encoded together, and pixels of them: the widest feature maps of SDXL's VAE are 0.5 GB for a view of 1024 px.
_MAX_AT_ONCE, _MAX_PIXELS = 16, 8 * 512 * 512


@dataclass(frozen=True, eq=False)
class TuningViews:
    """Everything about the images that the steps need, encoded once.

    Args:
        references: the K images as PromptNet reads them.
        latents: (N, C, h, w) of the augmented views.
        masks: (N, 1, h, w), where each view shows the image.
        read: what PromptNet reads in training steps: the K images, then their moved copies, if there are any.
    """

    references: EncodedReferences
    latents: Tensor
    masks: Tensor
    read: EncodedReferences


@torch.no_grad()
def prepare_views(pipe: Any, images: Sequence[Any], config: LoopConfig, draws: torch.Generator) -> TuningViews:
    """Encode the images, and views of them. Without an image encoder there are no vision states, (K, 0, 0)."""
    size_px, device = pipe.trained_size_px[0], pipe.unet.device
    references = encode_references(pipe.vae, pipe.image_encoder, pipe.feature_extractor, images, size_px, device)
    placed = [
        place(pixels, view)
        for pixels in (to_pixels(square(image, size_px)).to(device) for image in images)
        for view in sample_views(config.num_views, size_px, scales=config.scales, flip=config.flip, generator=draws)
    ]
    canvases, masks = (torch.stack(list(parts)) for parts in zip(*placed, strict=True))
    latents = torch.cat([encode_pixels(pipe.vae, part) for part in canvases.split(views_at_once(size_px))])
    read = references
    if copies := getattr(config, "moved_references", 0):
        moved = moved_copies(images, copies, size_px, config.scales, draws)
        extra = encode_references(pipe.vae, pipe.image_encoder, pipe.feature_extractor, moved, size_px, device)
        read = EncodedReferences(*(torch.cat(both) for both in zip(references, extra, strict=True)))
    return TuningViews(references, latents.to(pipe.unet.dtype), latent_mask(masks, pipe.vae_scale_factor), read)


def moved_copies(
    images: Sequence[Any], copies: int, size_px: int, scales: tuple[float, float], draws: torch.Generator
) -> list[Any]:
    """Return RGB images of side `size_px`: `copies` of each image, placed and scaled as views are, never mirrored."""
    views = [sample_views(copies, size_px, scales=scales, generator=draws) for _ in images]
    return [
        to_image(place(to_pixels(square(image, size_px)), view)[0])
        for image, of_image in zip(images, views, strict=True)
        for view in of_image
    ]


def views_at_once(size_px: int) -> int:
    """How many views of this side are encoded together."""
    return min(_MAX_AT_ONCE, max(1, _MAX_PIXELS // size_px**2))


@dataclass(frozen=True, eq=False)
class Batch:
    """B noisy views, on the device: clean latents, where they count, their noise and noise level, what names them.

    Args:
        latents: (B, C, h, w).
        masks: (B, 1, h, w).
        noise: (B, C, h, w).
        timesteps: (B,).
        images: (B,), which of the encoded references PromptNet reads.
        prompts: B prompts that hold S*.
    """

    latents: Tensor
    masks: Tensor
    noise: Tensor
    timesteps: Tensor
    images: Tensor
    prompts: Sequence[str]


def training_batch(
    tuning_views: TuningViews, config: LoopConfig, num_timesteps: int, held_out: Tensor, draws: torch.Generator
) -> Batch:
    """Random views, each under its own noise, named by any of the person's images."""
    size, latents = config.batch_size, tuning_views.latents
    timesteps = training_timesteps(size, num_timesteps, held_out, draws)
    views = torch.randint(len(latents), (size,), generator=draws)
    images = torch.randint(len(tuning_views.read.latents), (size,), generator=draws)
    prompts = torch.randint(len(config.prompts), (size,), generator=draws).tolist()
    noise = torch.randn((size, *latents.shape[1:]), generator=draws)
    return Batch(
        latents[views],
        tuning_views.masks[views],
        noise.to(latents),
        timesteps.to(latents.device),
        images.to(latents.device),
        [config.prompts[index] for index in prompts],
    )


def held_out_batches(
    tuning_views: TuningViews, config: LoopConfig, held_out: Tensor, draws: torch.Generator
) -> list[Batch]:
    """Each image as it is, at noise levels and under noise that no step trains on."""
    latents = tuning_views.references.latents
    device, count = latents.device, len(held_out)
    batches = []
    for image in range(len(latents)):
        noise = torch.randn((count, *latents.shape[1:]), generator=draws).to(latents)
        clean = latents[image].expand_as(noise)
        same = torch.full((count,), image, device=device)
        prompts = [config.prompts[0]] * count
        batches.append(Batch(clean, torch.ones_like(clean[:, :1]), noise, held_out.to(device), same, prompts))
    return batches


@dataclass(frozen=True)
class View:
    """Where the image lies on a canvas of its own size: scaled to `size_px`, its corner at (`top_px`, `left_px`)."""

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
    """Views with a uniform scale, and a uniform place where the smaller of image and canvas lies in the larger.

    Args:
        num_views: how many.
        canvas_px: side of the canvas, and of the unscaled image.
        scales: smallest and largest side of the image, in canvas sides. Above 1 the image is cropped.
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
    room_px = canvas_px - size_px  # negative where the image is larger and moves behind the canvas
    return View(size_px, round(room_px * down), round(room_px * right), flipped)


def place(pixels: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """One view of `pixels` (C, S, S): the canvas (C, S, S) and its mask (1, S, S), 1 where the image lies."""
    side_px = pixels.shape[-1]
    scaled = F.interpolate(pixels[None], (view.size_px, view.size_px), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    scaled = scaled.flip(-1) if view.flipped else scaled
    rows, rows_inside = _sources(side_px, view.top_px, view.size_px, pixels.device)
    columns, columns_inside = _sources(side_px, view.left_px, view.size_px, pixels.device)
    mask = (rows_inside[:, None] & columns_inside[None, :])[None].to(pixels.dtype)
    return scaled[:, rows][:, :, columns], mask


def _sources(side_px: int, start_px: int, size_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each canvas row the image's row that it shows, and whether it is one and not the repeated border."""
    rows = torch.arange(side_px, device=device) - start_px
    return rows.clamp(0, size_px - 1), (rows >= 0) & (rows < size_px)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A pixel mask (B, 1, H, W) at the latents' size: 1 for cells that lie wholly in the image."""
    return (F.avg_pool2d(mask, factor) > 1 - 1e-6).to(mask.dtype)  # (B, 1, H/factor, W/factor)
