"""The base model that an edit is learned in, and the subjects that it may be learned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPVisionModel

from promptnet.inference.pipeline import PromptNetPipeline
from promptnet.inference.sampling.arguments import check_base_model
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.subject.subject import Subject
from promptnet.models.promptnet import PromptNetModel


def check_base(base_dir: Path) -> None:
    """Refuse, before any weights are loaded, what edits cannot be learned in.

    Raises:
        ValueError: it is not the folder of a base model, or it is one with two text encoders (SDXL), or for inpainting.
    """
    if not (base_dir / "model_index.json").is_file():
        raise ValueError(
            f"base model '{base_dir}' is not a folder in diffusers layout (with model_index.json), which learning an "
            "edit needs: download it first, for instance with pipe.save_pretrained(folder)."
        )
    unet: Any = UNet2DConditionModel.load_config(base_dir / "unet")
    if unet.get("addition_embed_type") is not None:
        raise ValueError(
            f"base model '{base_dir}' has two text encoders (SDXL), in which edits cannot be learned yet: use one of "
            "the kind of Stable Diffusion 1.5 or 2."
        )
    vae: Any = AutoencoderKL.load_config(base_dir / "vae")
    check_base_model({"in_channels": 4, **unet}, {"latent_channels": 4, **vae})


def scheduler_config(base_dir: Path) -> dict[str, Any]:
    """The base model's own."""
    config: Any = diffusers.DDIMScheduler.load_config(base_dir / "scheduler")
    return config


def sampling_defaults(base_dir: Path) -> SamplingConfig:
    """The parameters that the base model draws subjects with."""
    config: Any = PromptNetPipeline.load_config(base_dir)
    return SamplingConfig().replaced(config.get("sampling") or {})


def load_frozen(base_dir: Path, *, with_encoder: bool = False) -> dict[str, Any]:
    """The base model's parts in float32, for evaluation.

    Args:
        base_dir: diffusers folder.
        with_encoder: also PromptNet and the image encoder, which subjects need.
    """
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(base_dir / "vae"),
        "unet": UNet2DConditionModel.from_pretrained(base_dir / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(base_dir / "text_encoder"),
    }
    if with_encoder:
        parts["promptnet"] = PromptNetModel.from_pretrained(base_dir / "promptnet")
        parts["image_encoder"] = CLIPVisionModel.from_pretrained(base_dir / "image_encoder")
    return {name: part.float().requires_grad_(False).eval() for name, part in parts.items()}


def load_subjects(paths: Sequence[str], frozen: Mapping[str, Any], base_dir: Path) -> list[Subject]:
    """Subjects made with this base model.

    Raises:
        ValueError: a file cannot be used, or its subject was made with another base model.
    """
    subjects = [Subject.load(path) for path in paths]
    for subject in subjects:
        subject.check(SimpleNamespace(**frozen, name_or_path=base_dir.name))
    return subjects
