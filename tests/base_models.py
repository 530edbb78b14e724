"""Base models of each family in a diffusers folder, with random weights, small enough for milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from promptnet.models.base_model_shapes import any_tokenizer


def _text(width: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **more,
    )


def write_base(folder: Path, family: str) -> Path:
    """A complete base model with random weights: images of 32 px, latents 4 x 16 x 16."""
    torch.manual_seed(0)
    two = family == "sdxl"
    added: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    }
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24 + 32 if two else 24,
        attention_head_dim=2,  # type: ignore[arg-type]
        norm_num_groups=8,
        **(added if two else {}),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        block_out_channels=(8, 8),  # type: ignore[arg-type]
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(_text(24)).save_pretrained(folder / "text_encoder")
    any_tokenizer(16).save_pretrained(folder / "tokenizer")
    if two:
        CLIPTextModelWithProjection(_text(32, projection_dim=12)).save_pretrained(folder / "text_encoder_2")
        any_tokenizer(16).save_pretrained(folder / "tokenizer_2")
    vision = CLIPVisionConfig(
        hidden_size=20, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(vision).save_pretrained(folder / "vision")
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder / "vision")
    DDIMScheduler(
        prediction_type="v_prediction" if family == "sd-v" else "epsilon",
        rescale_betas_zero_snr=family == "sd-v",
        clip_sample=False,
    ).save_pretrained(folder / "scheduler")
    write_index(folder, two=two)
    return folder


def write_index(folder: Path, *, two: bool) -> None:
    """The `model_index.json` that such base models have on the Hub."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if two else "StableDiffusionPipeline",
        "_diffusers_version": "0.19.0.dev0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if two:
        index |= {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
