"""Base models of a true shape with random weights, and prepared sets of random images, made where they are needed."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from promptnet.models import base_model_shapes as shapes

_CPU = torch.device("cpu")
SHAPES = {"tiny": ("checkpoints/tiny", ""), "sd2": (shapes.SD2, shapes.VIT_H)}
"""Name -> base model and image encoder whose shapes are taken; "" is the base's own encoder."""


def randomise(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Weights on the meta device become small random ones, part by part, so that no second copy is ever held."""
    nn.Module.to(network, dtype=dtype)
    network.to_empty(device=device)
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point():
            value.data.normal_(std=0.02)
    for module in network.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, torch.Tensor):
            ids.copy_(torch.arange(ids.shape[-1]).expand_as(ids))


def write_random_base(folder: Path, shape: str, device: torch.device = _CPU) -> Path:
    """A diffusers folder, image encoder included, of one of `SHAPES`; in half precision, as such folders are.

    Args:
        folder: to write.
        shape: one of `SHAPES`.
        device: where the weights are drawn; a GPU is far faster at that.
    """
    base, vision = SHAPES[shape]
    parts, scheduler = shapes.base_parts(base)
    text_encoder: Any = shapes.image_encoder(vision, base)
    networks: dict[str, Any] = {**parts, "image_encoder": text_encoder}
    for name, network in networks.items():
        randomise(network, device, torch.float16)
        network.save_pretrained(folder / name)
        network.to("meta")
    shapes.any_tokenizer(networks["text_encoder"].config.max_position_embeddings).save_pretrained(folder / "tokenizer")
    shapes.image_processor(text_encoder).save_pretrained(folder / "feature_extractor")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def write_random_set(folder: Path, num_images: int, side_px: int) -> Path:
    """A set as `promptnet prepare` makes it: one shard of smooth random images, four of each person."""
    import pyarrow as pa  # here, as a machine for the GPU run may not have it
    import pyarrow.parquet as pq

    rng, files = np.random.default_rng(0), []
    for _ in range(num_images):
        file, coarse = BytesIO(), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
        files.append({"bytes": file.getvalue(), "path": None})
    people, captions = [f"person {number // 4}" for number in range(num_images)], [None] * num_images
    folder.mkdir(parents=True)
    columns = {"image": files, "identity": people, "caption": pa.array(captions, pa.string())}
    pq.write_table(pa.table(columns), folder / "data-00000.parquet")
    return folder
