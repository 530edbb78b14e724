"""Base models of each family without an encoder, all of random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModel

from promptnet import PromptNetPipeline
from tests.base_models import write_base

FAMILIES = ("sd", "sd-v", "sdxl")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_base(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="session")
def pipes(bases: dict[str, Path]) -> dict[str, Any]:
    """A pipeline of each family; nothing changes their weights."""
    found = {family: PromptNetPipeline.from_pretrained(folder) for family, folder in bases.items()}
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
        for network in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            if network is not None:
                network.requires_grad_(False)
    return found


@pytest.fixture(params=FAMILIES)
def pipe(request: pytest.FixtureRequest, pipes: dict[str, Any]) -> Any:
    return pipes[request.param]


@pytest.fixture
def with_clip(pipe: Any, bases: dict[str, Path]) -> Any:
    """The same with an image encoder, for E4T."""
    folder = bases["sd"] / "vision"
    vision = CLIPVisionModel.from_pretrained(folder)
    extractor = CLIPImageProcessor.from_pretrained(folder)
    found = PromptNetPipeline(**{**pipe.components, "image_encoder": vision, "feature_extractor": extractor})
    found.set_progress_bar_config(disable=True)
    return found


def picture(seed: int = 0, side_px: int = 40) -> Image.Image:
    values = torch.rand(side_px, side_px, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((values * 255).byte().numpy())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
