"""SEGA (Brack et al., arXiv 2301.12247) as diffusers ships it, on the same base model."""

from typing import Any

import torch
from PIL import Image

WARMUP_FRACTION = 0.2
"""Of the steps, before the edit acts: diffusers' 10 of 50."""


@torch.no_grad()
def edited_by_sega(
    pipe: Any, neutral: str, concept: str, latents: torch.Tensor, num_steps: int, guidance_scale: float
) -> Image.Image:
    """Draw an image with a concept added, with diffusers' own settings but for steps and guidance.

    Args:
        pipe: a PromptNetPipeline with one text encoder.
        neutral: the prompt without the attribute.
        concept: the attribute.
        latents: (1, 4, h, w), the noise to start from.
        num_steps: denoising steps.
        guidance_scale: of the prompt.
    """
    from diffusers import SemanticStableDiffusionPipeline

    baseline: Any = SemanticStableDiffusionPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    baseline.set_progress_bar_config(disable=True)
    return baseline(
        neutral,
        editing_prompt=[concept],
        edit_warmup_steps=round(WARMUP_FRACTION * num_steps),
        latents=latents.to(pipe.unet.device, pipe.unet.dtype),
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
    ).images[0]
