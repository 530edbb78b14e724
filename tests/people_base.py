"""The embedded model with random weights: all that its recipes start from."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPVisionModel

from promptnet.models.tiny import (
    build_clip,
    build_image_processor,
    build_scheduler,
    build_unet,
    build_vae,
    train_tokenizer,
)
from promptnet.training.embedded.clip import sampled_captions
from promptnet.training.embedded.soft_words import RecordEncoder


def write_people_base(folder: Path) -> Path:
    """Write VAE, tokenizer, encoders, a narrow U-Net, scheduler and record encoder; return the folder."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(sampled_captions(0, 2000))
    config: Any = build_clip(tokenizer).config
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(config.text_config).save_pretrained(folder / "text_encoder")
    CLIPVisionModel(config.vision_config).save_pretrained(folder / "image_encoder")
    build_image_processor().save_pretrained(folder / "feature_extractor")
    build_vae().save_pretrained(folder / "vae")
    build_unet((32, 32, 64)).save_pretrained(folder / "unet")
    build_scheduler().save_pretrained(folder / "scheduler")
    (folder / "record_encoder").mkdir()
    save_file(RecordEncoder(192, 0.3).state_dict(), folder / "record_encoder" / "model.safetensors")
    return folder
