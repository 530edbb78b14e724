"""Random-weight models, small enough for milliseconds: 16 px pictures, latents 4 x 8 x 8."""

import pytest
import torch
from diffusers import UNet2DConditionModel

TEXT_WIDTH = 32


def build_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    return build_unet()
