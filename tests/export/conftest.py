"""Base models of each family with an encoder, all of random weights, and somebody made of noise for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionModel

from promptnet import PromptNetModel, PromptNetPipeline, Subject
from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.lora import LoRALayer, initial_loras, key_value_layers, word_layers
from promptnet.models.text_encoders import text_encoders_of
from tests.base_models import write_base

FAMILIES = ("sd", "sd-v", "sdxl")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_base(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="session")
def pipes(bases: dict[str, Path]) -> dict[str, Any]:
    """Our pipeline of each family; nothing changes their weights."""
    return {family: load(folder) for family, folder in bases.items()}


def load(folder: Path) -> Any:
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(1)
    parts: dict[str, Any] = {
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "vision"),
        "feature_extractor": CLIPImageProcessor.from_pretrained(folder / "vision"),
        "promptnet": PromptNetModel.from_unet(
            unet,
            vision_dim=20,
            prompt_channel=unet.config.cross_attention_dim,
            region_proj_channel=8,
            region_kernel_size=1,
        ).eval(),
    }
    pipe: Any = PromptNetPipeline.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def stock_of(bases: dict[str, Path]) -> Callable[[str], Any]:
    """A new stock pipeline of a family."""

    def build(family: str) -> Any:
        kind: Any = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
        pipe = kind.from_pretrained(bases[family])
        # StableDiffusionPipeline changes `steps_offset` of what it calls outdated configs.
        pipe.scheduler = diffusers.DDIMScheduler.from_pretrained(bases[family] / "scheduler")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def random_loras(layers: dict[str, Any], generator: torch.Generator, rank: int = 2) -> dict[str, LoRALayer]:
    found = initial_loras(layers, rank, generator)
    return {n: LoRALayer(d.A, torch.randn(d.B.shape, generator=generator)) for n, d in found.items()}


@pytest.fixture(scope="session")
def make_subject() -> Callable[..., Subject]:
    """Somebody made of noise, tuned so that one can see it."""

    def build(pipe: Any, seed: int = 0, *, num_references: int = 1, tuned: bool = True, **more: Any) -> Subject:
        generator = torch.Generator().manual_seed(seed)
        layers = {f"unet.{name}": layer for name, layer in key_value_layers(pipe.unet).items()}
        layers |= {f"promptnet.{name}": layer for name, layer in word_layers(pipe.promptnet).items()}
        return Subject(
            torch.randn(num_references, 4, 16, 16, generator=generator),
            torch.randn(num_references, 5, 20, generator=generator),
            torch.ones(num_references),
            fingerprint=fingerprint(pipe),
            loras=random_loras(layers, generator) if tuned else {},
            **{"class_word": "person", **more},
        )

    return build


@pytest.fixture(scope="session")
def make_static() -> Callable[..., StaticSubject]:
    """Words and a LoRA whose layers have different ranks."""

    def build(pipe: Any, seed: int = 0) -> StaticSubject:
        generator = torch.Generator().manual_seed(seed)
        layers = key_value_layers(pipe.unet)
        keys = {name: layer for name, layer in layers.items() if name.endswith("to_k")}
        loras = random_loras(layers, generator) | random_loras(keys, generator, rank=3)
        encoders = text_encoders_of(pipe)
        return StaticSubject(
            torch.randn(2, encoders.width, generator=generator),
            tuple(encoder.width for encoder in encoders.text_encoders),
            loras,
            fingerprint=fingerprint(pipe),
            recipe={"static": "mean"},
        )

    return build


@pytest.fixture
def passport() -> Passport:
    return Passport(
        {"unet": "abc"}, "person", "a base", {"static": "mean"}, "mit", "c0ffee", "2026-11-28T00:00:00+00:00"
    )
