"""A base model with random weights, such as edits are learned in: CLIP with its projections, PromptNet, and all."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline
from promptnet.models.tiny import (
    TEXT_WIDTH,
    VISION_WIDTH,
    build_clip,
    build_image_processor,
    build_scheduler,
    build_unet,
    build_vae,
    copy_encoder,
    save_projections,
    train_tokenizer,
)


def build_edit_base(folder: Path) -> Path:
    """Diffusers folder of an untrained embedded model with a narrower U-Net."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a portrait of a person, happy"])
    clip: Any = build_clip(tokenizer)
    text_encoders: dict[str, Any] = {"text": CLIPTextModel, "vision": CLIPVisionModel}
    for name, kind in text_encoders.items():
        text_encoders[name] = kind(getattr(clip.config, f"{name}_config"))
        copy_encoder(getattr(clip, f"{name}_model"), text_encoders[name])
    unet = build_unet((32, 32, 64))
    promptnet = PromptNetModel.from_unet(
        unet, vision_dim=VISION_WIDTH, prompt_channel=TEXT_WIDTH, region_proj_channel=8, region_kernel_size=2
    )
    pipe = PromptNetPipeline(
        vae=build_vae(),
        text_encoder=text_encoders["text"],
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        promptnet=promptnet,
        image_encoder=text_encoders["vision"],
        feature_extractor=build_image_processor(),
    )
    pipe.save_pretrained(folder)
    save_projections(clip, folder)
    return folder
