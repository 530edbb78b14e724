"""LEDITS++ (Brack et al., arXiv 2311.16711) as diffusers ships it, on the same base model."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image


@torch.no_grad()
def edited_by_ledits(
    pipe: Any,
    images: Sequence[Image.Image],
    neutral: str,
    styled: str,
    num_steps: int,
    generator: torch.Generator,
    source_guidance_scale: float,
) -> list[Image.Image]:
    """Edit images with diffusers' pipeline and its own settings, except for steps and guidance.

    Its scheduler is SDE-DPM-Solver++, as it recommends: its DDIM assumes that every model predicts noise.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler: Any = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2, timestep_spacing="leading"
    )
    baseline = _pipeline(pipe, scheduler)
    baseline.set_progress_bar_config(disable=True)
    size_px = images[0].size[0]
    baseline.invert(
        list(images),
        source_prompt=neutral,
        source_guidance_scale=source_guidance_scale,
        num_inversion_steps=num_steps,
        generator=generator,
        height=size_px,
        width=size_px,
    )
    noise = {} if _is_xl(pipe) else {"generator": generator}  # SDXL's draws none after the inversion
    return baseline(editing_prompt=[styled], **noise).images


def _is_xl(pipe: Any) -> bool:
    return pipe.text_encoder_2 is not None


def _pipeline(pipe: Any, scheduler: Any) -> Any:
    """Return diffusers' pipeline of the base model's parts."""
    from diffusers import LEditsPPPipelineStableDiffusion, LEditsPPPipelineStableDiffusionXL

    parts: dict[str, Any] = {"vae": pipe.vae, "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    parts |= {"unet": copy.deepcopy(pipe.unet), "scheduler": scheduler}  # it replaces the attention processors
    if _is_xl(pipe):
        parts |= {"text_encoder_2": pipe.text_encoder_2, "tokenizer_2": pipe.tokenizer_2, "add_watermarker": False}
        return LEditsPPPipelineStableDiffusionXL(**parts)
    return LEditsPPPipelineStableDiffusion(
        **parts,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
