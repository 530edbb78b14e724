"""A whole CLIP in transformers' layout, with random weights, small enough for milliseconds."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from promptnet.models.base_model_shapes import any_tokenizer


def write_clip(folder: Path) -> Path:
    torch.manual_seed(3)
    small: dict[str, Any] = {"intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 100, "hidden_size": 16, "max_position_embeddings": 16, **small}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": 20, "image_size": 16, "patch_size": 8, **small}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    any_tokenizer(16).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder)
    return folder
