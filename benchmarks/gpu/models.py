"""Pipelines of true shapes with random weights, made on the device."""

from typing import Any

import numpy as np
import torch
from customize import random_pipeline
from PIL import Image
from random_base import randomise

from promptnet import PromptNetModel, PromptNetPipeline
from promptnet.models import base_model_shapes as shapes

PROMPTS = ["a photo of S* wearing a hat", "a sad portrait of S*", "S* on a beach", "a drawing of S*"]


def make_pipeline(size: str, device: str) -> Any:
    """Return Stable Diffusion 2's shape in half precision ("true"), or the embedded model's ("toy")."""
    torch.manual_seed(0)
    if size == "toy":
        return random_pipeline().to(device)
    return _true_pipeline(torch.device(device), torch.float16 if device.startswith("cuda") else torch.float32)


def _true_pipeline(device: torch.device, dtype: torch.dtype) -> Any:
    parts, scheduler = shapes.base_parts(shapes.SD2)
    given: dict[str, Any] = dict(parts)
    given["image_encoder"] = shapes.image_encoder(shapes.VIT_H, shapes.SD2)
    with torch.device("meta"):
        given["promptnet"] = PromptNetModel.from_unet(given["unet"], vision_dim=1280, prompt_channel=1024)
    for network in given.values():
        randomise(network.eval(), device, dtype)
    pipe = PromptNetPipeline(
        **given,
        scheduler=scheduler,
        tokenizer=shapes.any_tokenizer(77),
        feature_extractor=shapes.image_processor(given["image_encoder"]),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_image(seed: int = 0) -> Image.Image:
    """Return an image of noise, as somebody's reference."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8))
