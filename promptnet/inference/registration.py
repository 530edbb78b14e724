"""Registration: find the frame in which a reference image looks most like what the base model generates.

A base model that was trained in one frame (a face in the middle, at one size) reads an image in another frame as
somebody else. The frame can be searched without labels: of all crops of the image, the right one has the lowest
denoising loss under its own S* (seconds on a CPU for images of 64 px).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from promptnet.images.crop import square, to_image, to_pixels
from promptnet.images.load import Source
from promptnet.inference.references import EncodedReferences, encode_references, open_references
from promptnet.inference.tuning.customize import autocast, denoising_loss
from promptnet.inference.tuning.loss import held_out_timesteps
from promptnet.inference.tuning.views import Batch, View, latent_mask, place, views_at_once

_PROMPT = "a portrait of S*"
_ZOOMS = (0.74, 0.86, 1.0, 1.16, 1.35)
_SHIFT = 0.1
_NUM_CANDIDATES = 4  # of the coarse grid, whose losses are taken at one noise level
_FINER = (0.5, 0.25)


@dataclass(frozen=True)
class Crop:
    """What is done to an image: scaled about its centre by `zoom`, then shifted by shares of the side."""

    zoom: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def view(self, size_px: int) -> View:
        """Return it as a view on a canvas of this side."""
        scaled_px = max(1, round(size_px * self.zoom))
        top, left = (round((size_px - scaled_px) / 2 + size_px * shift) for shift in (self.shift_y, self.shift_x))
        return View(scaled_px, top, left)


@dataclass(frozen=True)
class Registration:
    """The outcome of a search.

    Attributes:
        image: the reference in the frame found, at the trained size.
        crop: what was done to it.
        loss: denoising loss in that frame.
        loss_before: in the image's own frame.
    """

    image: Image.Image
    crop: Crop
    loss: float
    loss_before: float


@torch.no_grad()
def register(
    pipe: Any, image: Source, *, prompt: str = _PROMPT, num_levels: int = 4, margin: float = 0.02, seed: int = 0
) -> Registration:
    """Search the frame of one reference image: a coarse grid of scales and shifts, then around the best.

    Args:
        pipe: a PromptNetPipeline, all of it on one device.
        image: the reference.
        prompt: holds S*.
        num_levels: noise levels at which losses are taken.
        margin: share by which a frame has to be better than the image's own to be taken.
        seed: of the noise, the same for every frame.

    Raises:
        ImageError: the image cannot be used.
        ValueError: `num_levels` is below 1 or `margin` is negative.
    """
    if num_levels < 1 or margin < 0:
        raise ValueError(f"num_levels={num_levels} must be at least 1 and margin={margin} at least 0")
    (opened,) = open_references(image)
    coarse, search = (_Search(pipe, opened, prompt, levels, seed) for levels in (1, num_levels))
    plain = Crop()
    best = search.best([plain, *coarse.in_order(_grid())[:_NUM_CANDIDATES]])
    for fine in _FINER:
        best = search.best(_around(best, _SHIFT * fine, _ZOOMS[3] ** fine))
    before = search.losses[plain]
    chosen = best if search.losses[best] < (1 - margin) * before else plain
    return Registration(search.image(chosen), chosen, search.losses[chosen], before)


def _grid() -> list[Crop]:
    shifts = (-_SHIFT, 0.0, _SHIFT)
    return [Crop(zoom, right, down) for zoom in _ZOOMS for right in shifts for down in shifts]


def _around(crop: Crop, shift: float, factor: float) -> list[Crop]:
    """The crop, its neighbours in each direction, and larger and smaller ones."""
    moved = [
        replace(crop, shift_x=crop.shift_x + right * shift, shift_y=crop.shift_y + down * shift)
        for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    return [crop, *moved, replace(crop, zoom=crop.zoom * factor), replace(crop, zoom=crop.zoom / factor)]


class _Search:
    """Losses of crops of one image, each computed once, several together."""

    def __init__(self, pipe: Any, opened: Image.Image, prompt: str, num_levels: int, seed: int) -> None:
        self.pipe, self.prompt, self.size_px = pipe, prompt, pipe.trained_size_px[0]
        self.pixels = to_pixels(square(opened, self.size_px))
        self.timesteps = held_out_timesteps(len(pipe.scheduler.alphas_cumprod), num_levels)
        self.seed = seed
        self.losses: dict[Crop, float] = {}

    def best(self, crops: list[Crop]) -> Crop:
        return self.in_order(crops)[0]

    def in_order(self, crops: list[Crop]) -> list[Crop]:
        """The crops, that with the lowest loss first."""
        missing = [crop for crop in dict.fromkeys(crops) if crop not in self.losses]
        together = max(1, views_at_once(self.size_px) // len(self.timesteps))
        for start in range(0, len(missing), together):
            part = missing[start : start + together]
            self.losses |= dict(zip(part, self._losses(part), strict=True))
        return sorted(crops, key=self.losses.__getitem__)

    def image(self, crop: Crop) -> Image.Image:
        return to_image(place(self.pixels, crop.view(self.size_px))[0])

    def _losses(self, crops: list[Crop]) -> list[float]:
        pipe = self.pipe
        parts = pipe.vae, pipe.image_encoder, pipe.feature_extractor
        references = encode_references(*parts, [self.image(crop) for crop in crops], self.size_px, pipe.unet.device)
        with autocast(pipe):
            losses = denoising_loss(pipe, references, self._batch(references, crops))
        return losses.view(len(crops), -1).mean(1).tolist()

    def _batch(self, references: EncodedReferences, crops: list[Crop]) -> Batch:
        """Every crop at every noise level, under the same noise."""
        levels, latents = len(self.timesteps), references.latents
        inside = torch.stack([place(self.pixels, crop.view(self.size_px))[1] for crop in crops])
        masks = latent_mask(inside, self.pipe.vae_scale_factor).to(latents)
        draws = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((levels, *latents.shape[1:]), generator=draws).to(latents)
        return Batch(
            latents.repeat_interleave(levels, 0).to(self.pipe.unet.dtype),
            masks.repeat_interleave(levels, 0),
            noise.repeat(len(crops), 1, 1, 1),
            self.timesteps.repeat(len(crops)).to(latents.device),
            torch.arange(len(crops), device=latents.device).repeat_interleave(levels),
            [self.prompt] * (levels * len(crops)),
        )
