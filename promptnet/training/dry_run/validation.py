"""What drawing at a validation takes, counted on the meta device like a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from promptnet.models.base_model_shapes import clip_model
from promptnet.training.dry_run.meter import metered


@dataclass(frozen=True)
class Work:
    """Operations, and the most bytes alive at one time beside weights and batch."""

    flops: int
    peak_bytes: int


@dataclass(frozen=True)
class Method:
    """What `ValidationImages` draws at once, and what looks at it.

    Attributes:
        num_people: whose images are drawn one after the other.
        num_prompts: images of each, drawn together.
        num_steps: denoising steps.
        clip: the whole CLIP that `ValidationMeasures` loads; None where it needs none but the base model's encoders.
    """

    num_people: int = 4
    num_prompts: int = 3
    num_steps: int = 16
    clip: str | None = None

    @property
    def num_images(self) -> int:
        """Of one validation."""
        return self.num_people * self.num_prompts


@torch.no_grad()
def sampling_work(stage: Any, drawing: Method, batch: Mapping[str, Any], existing: Sequence[torch.Tensor]) -> Work:
    """Draw on the meta device: one guided step of the encoder and the U-Net, one image through the decoder, CLIP.

    Args:
        stage: a pretraining stage without weights.
        drawing: what is drawn.
        batch: of `num_prompts` rows.
        existing: tensors that are there anyway.
    """
    num_people, each = drawing.num_people, drawing.num_prompts
    reference = stage._latents(batch, "reference", "validation")  # (P, C, h, w)
    with metered(existing) as step:
        _guided_step(stage, batch, reference)
    with metered(existing) as decoder:  # one by one
        stage.frozen["vae"].decode(reference[:1].to(stage.frozen["vae"].dtype))
    clip = _clip_work(drawing) if drawing.clip else Work(0, 0)
    flops = num_people * (drawing.num_steps * step.flops + each * decoder.flops) + clip.flops
    return Work(flops, max(step.peak_bytes, decoder.peak_bytes, clip.peak_bytes))


def _guided_step(stage: Any, batch: Mapping[str, Any], reference: torch.Tensor) -> None:
    """The encoder, the prompt with S*, and the U-Net on it and on the empty prompt."""
    encoder, unet = stage.promptnet, stage.frozen["unet"]
    timesteps = torch.zeros(len(reference), device="meta")
    vision = (
        batch["reference_vision"] if "reference_vision" in batch else stage._vision_states(batch["reference_pixels"])
    )
    x = reference.to(encoder.dtype)
    words = encoder(x, timesteps, vision.to(encoder.dtype), noisy_latents=x).pseudo_words
    conditions = stage._conditions(dict(batch), words)
    twice = {name: _twice(value) for name, value in conditions.items()}
    unet(reference.to(unet.dtype).repeat(2, 1, 1, 1), timesteps.repeat(2), **twice)


def _twice(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _twice(inner) for name, inner in value.items()}
    return torch.cat([value, value])


def _clip_work(drawing: Method) -> Work:
    """A CLIP that comes to the device for the look, in half precision, and goes again."""
    clip: Any = nn.Module.to(clip_model(drawing.clip or ""), dtype=torch.float16)
    side_px, length = clip.config.vision_config.image_size, clip.config.text_config.max_position_embeddings
    pixels = torch.empty(drawing.num_images, 3, side_px, side_px, dtype=torch.float16, device="meta")
    tokens = torch.zeros(drawing.num_images, length, dtype=torch.long, device="meta")
    weights = [*clip.parameters(), *clip.buffers()]
    with metered([*weights, pixels, tokens]) as meter:
        clip.get_image_features(pixel_values=pixels)
        clip.get_text_features(input_ids=tokens)
    num_bytes = sum(value.numel() * value.element_size() for value in weights)
    return Work(meter.flops, meter.peak_bytes + num_bytes)
