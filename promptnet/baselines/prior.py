"""DreamBooth's prior: images of the class, drawn by the base model itself, and kept (arXiv 2208.12242, section 3.3)."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from promptnet.baselines.config import PriorConfig
from promptnet.images.crop import square, to_pixels
from promptnet.inference.references import encode_pixels
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.tuning.views import Batch, views_at_once
from promptnet.io.atomic import write_whole

Drawn = Callable[[int, int], object]


def prior_text(config: PriorConfig, class_word: str) -> str:
    """Return what the prior's images are of."""
    return config.prior_prompt.replace("{class_word}", class_word)


def default_cache() -> Path:
    """Return the folder where prior images are kept: promptnet/prior in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "promptnet" / "prior"


def prior_images(
    pipe: Any, config: PriorConfig, class_word: str, cache: Path | None = None, on_image: Drawn | None = None
) -> list[Image.Image]:
    """Return the prior's images; those that an earlier call drew are read, the others drawn and kept.

    They depend on the base model, the prompt and the settings, each image on its own seed: a call that was stopped goes
    on where it was, and more images add to those there are.

    Args:
        pipe: a PromptNetPipeline; it needs no encoder.
        config: of the method.
        class_word: what the person is in a sentence.
        cache: folder of all priors; None is `default_cache()`.
        on_image: (images there are, images in all), called after each.
    """
    text = prior_text(config, class_word)
    folder = (cache or default_cache()) / _key(pipe, config, text)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(config.num_prior_images):
        path = folder / f"{seed:05d}.png"
        if not path.is_file():
            write_whole(path, _draw(pipe, config, text, seed).save)
        with Image.open(path) as image:
            found.append(image.convert("RGB"))
        if on_image is not None:
            on_image(seed + 1, config.num_prior_images)
    return found


def _key(pipe: Any, config: PriorConfig, text: str) -> str:
    hashes = {name: hash_ for name, hash_ in fingerprint(pipe).items() if name not in ("promptnet", "image_encoder")}
    settings = [text, config.prior_steps, config.prior_guidance, type(pipe.scheduler).__name__, hashes]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


def _draw(pipe: Any, config: PriorConfig, text: str, seed: int) -> Image.Image:
    before = pipe.__dict__.get("_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe(
            text,
            num_inference_steps=config.prior_steps,
            guidance_scale=config.prior_guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
    finally:
        pipe.set_progress_bar_config(**before)


@torch.no_grad()
def prior_latents(pipe: Any, images: list[Image.Image]) -> Tensor:
    """Return the scaled latents of the prior's images, (M, C, h, w)."""
    size_px, device = pipe.trained_size_px[0], pipe.unet.device
    pixels = torch.stack([to_pixels(square(image, size_px)) for image in images])
    parts = [encode_pixels(pipe.vae, part.to(device)) for part in pixels.split(views_at_once(size_px))]
    return torch.cat(parts).to(pipe.unet.dtype)


class Prior:
    """Adds rows of the class to a batch, and weighs their loss.

        E[ || eps_theta(x_t, c) - eps ||^2 ] + lambda E[ || eps_theta(x'_t', c_pr) - eps' ||^2 ]     (equation 2)

    Args:
        latents: (M, C, h, w) of the prior's images.
        text: what they are of.
        weight: lambda.
        batch_size: rows to add.
        num_timesteps: of the schedule.
        draws: a CPU generator.
    """

    def __init__(
        self, latents: Tensor, text: str, weight: float, batch_size: int, num_timesteps: int, draws: torch.Generator
    ) -> None:
        self.latents, self.text, self.weight, self.batch_size = latents, text, weight, batch_size
        self.num_timesteps, self.draws = num_timesteps, draws

    def extended(self, batch: Batch) -> Batch:
        """Return the batch with its prior rows behind the person's."""
        places = torch.randint(len(self.latents), (self.batch_size,), generator=self.draws)
        timesteps = torch.randint(self.num_timesteps, (self.batch_size,), generator=self.draws)
        noise = torch.randn((self.batch_size, *self.latents.shape[1:]), generator=self.draws)
        latents = self.latents[places.to(self.latents.device)]
        return Batch(
            torch.cat([batch.latents, latents.to(batch.latents)]),
            torch.cat([batch.masks, torch.ones_like(latents[:, :1]).to(batch.masks)]),
            torch.cat([batch.noise, noise.to(batch.noise)]),
            torch.cat([batch.timesteps, timesteps.to(batch.timesteps)]),
            torch.cat([batch.images, torch.zeros_like(places).to(batch.images)]),
            [*batch.prompts, *[self.text] * self.batch_size],
        )

    def total(self, losses: Tensor) -> Tensor:
        """Return the person's mean loss plus lambda times the prior's, of the losses of an extended batch."""
        return losses[: -self.batch_size].mean() + self.weight * losses[-self.batch_size :].mean()
