"""Random-weight networks of each architecture, small enough for milliseconds."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

CROSS_WIDTH = 16


def build_unet(num_blocks: int = 4, *, seed: int = 0, sample_size: int = 16, **more: Any) -> UNet2DConditionModel:
    """Attention in all blocks but the deepest, as in Stable Diffusion; SDXL has three blocks."""
    torch.manual_seed(seed)
    plain = num_blocks - 1
    config: dict[str, Any] = {
        "sample_size": sample_size,
        "block_out_channels": (8,) * num_blocks,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * plain + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * plain,
        "norm_num_groups": 4,
        "cross_attention_dim": CROSS_WIDTH,
        "attention_head_dim": 4,
    }
    unet = UNet2DConditionModel(**config | more)
    return unet.eval().requires_grad_(False)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return build_unet()


@pytest.fixture
def make_unet() -> Any:
    return build_unet


def call(unet: Any, height: int = 32, width: int = 32, timestep: int = 999, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, height, width, generator=generator)
    states = torch.randn(rows, 5, CROSS_WIDTH, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor(timestep), encoder_hidden_states=states).sample


@pytest.fixture
def call_unet() -> Any:
    return call
