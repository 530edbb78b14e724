"""Similarity of images to their prompts: fields that a judge predicts as requested, and CLIP's cosine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from promptnet.metrics.identity import stacked
from promptnet.models.judge import AvatarJudge


def fields_read_right(judge: AvatarJudge, images: Sequence[Image.Image], asked: Sequence[Mapping[str, str]]) -> float:
    """Return the fraction of all requested attribute fields that the judge predicts as requested.

    Args:
        judge: of avatars.
        images: (N,).
        asked: N records of the requested fields.

    Raises:
        ValueError: no record holds a field.
    """
    read = judge.read(stacked(images, 64).to(judge.device))
    hits = [
        predicted[name] == value
        for predicted, wanted in zip(read, asked, strict=True)
        for name, value in wanted.items()
    ]
    if not hits:
        raise ValueError("no prompt requests a field, so there is nothing for the judge to predict")
    return sum(hits) / len(hits)


class ClipPrompts:
    """CLIP similarity between prompts and images, with the encoders of the run or with its own.

    Args:
        tokenizer: of the text encoder.
        text_encoder: a CLIP text encoder.
        image_encoder: a CLIP image encoder.
        feature_extractor: its preprocessing.
        text_projection: (D, W) into the shared space.
        visual_projection: (D, V) into the shared space.
        class_phrase: replaces S* in the text, as CLIP knows no pseudo-words.
        is_own: whether the encoders are used here alone, and are moved to the device when needed and back.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        image_encoder: Any,
        feature_extractor: Any,
        text_projection: torch.Tensor,
        visual_projection: torch.Tensor,
        class_phrase: str = "a person",
        is_own: bool = False,
    ) -> None:
        self.tokenizer, self.text_encoder, self.image_encoder = tokenizer, text_encoder, image_encoder
        self.feature_extractor, self.class_phrase = feature_extractor, class_phrase
        self.text_projection, self.visual_projection = text_projection, visual_projection
        self.is_own = is_own

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Move its own encoders to a device for the block; otherwise they stay on the CPU in half precision."""
        encoders = (self.text_encoder, self.image_encoder) if self.is_own else ()
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            for encoder in encoders:
                nn.Module.to(encoder, device=device, dtype=dtype)
            yield
        finally:
            for encoder in encoders:
                nn.Module.to(encoder, device="cpu", dtype=torch.float16)

    @torch.no_grad()
    def similarity(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the cosines (N,) of prompt i and image i."""
        texts = F.normalize(self._texts(prompts), dim=1)
        return (texts * F.normalize(self._seen(images), dim=1)).sum(dim=1)

    def _texts(self, prompts: Sequence[str]) -> torch.Tensor:
        plain = [prompt.replace("S*", self.class_phrase) for prompt in prompts]
        tokens = self.tokenizer(plain, padding="max_length", truncation=True, return_tensors="pt")
        weight = next(self.text_encoder.parameters())
        pooled = self.text_encoder(tokens.input_ids.to(weight.device)).pooler_output  # (N, W)
        return pooled.float() @ self.text_projection.to(pooled.device).float().T

    def _seen(self, images: Sequence[Image.Image]) -> torch.Tensor:
        weight = next(self.image_encoder.parameters())
        pixels = self.feature_extractor(images=list(images), return_tensors="pt").pixel_values
        pooled = self.image_encoder(pixel_values=pixels.to(weight)).pooler_output  # (N, V)
        return pooled.float() @ self.visual_projection.to(pooled.device).float().T


def load_clip_prompts(name: str) -> ClipPrompts:
    """Load a whole CLIP: both encoders, both projections and their preprocessing, in half precision on the CPU.

    Args:
        name: a folder or Hub id, in transformers' layout and safetensors.

    Raises:
        ValueError: a part is missing.
    """
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from promptnet.models.base_model import part_of

    loaded: Any = part_of(CLIPModel, name, use_safetensors=True, output_loading_info=True)
    clip, found = loaded
    if found["missing_keys"]:
        raise ValueError(
            f"'{name}' is no whole CLIP, it lacks {sorted(found['missing_keys'])[0]}: name one with both encoders and "
            "both projections, for example laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        )
    nn.Module.to(clip.eval().requires_grad_(False), dtype=torch.float16)
    preparing = part_of(CLIPTokenizer, name), part_of(CLIPImageProcessor, name)
    encoders, projections = (clip.text_model, clip.vision_model), (clip.text_projection, clip.visual_projection)
    weights = (projection.weight for projection in projections)
    return ClipPrompts(preparing[0], *encoders, preparing[1], *weights, is_own=True)


def is_whole_clip(name: str) -> bool:
    """Whether a folder or hub id holds both encoders of a CLIP, as its config says; a hub id that cannot be asked does.

    A image encoder alone, as some folders hold it, cannot compare images with prompts.
    """
    from transformers import CLIPConfig

    try:
        settings, _ = CLIPConfig.get_config_dict(name)
    except (OSError, ValueError):
        return not Path(name).is_dir()
    return settings.get("model_type") == "clip" and "text_config" in settings


def shared_projections(
    base_dir: str | Path, text_encoder: nn.Module, image_encoder: nn.Module
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the maps (D, W) and (D, V) into the space that a base model's encoders share; None if they share none.

    They are read from `clip_projections.safetensors` in the base model's folder. Stable Diffusion's own folders lack
    it: its text encoder has no projection, and its image encoder may be of another CLIP (see `load_clip_prompts`).
    """
    place = Path(base_dir) / "clip_projections.safetensors"
    if not place.is_file():
        return None
    from safetensors.torch import load_file

    found = load_file(place)
    text, visual = found["text_projection.weight"], found["visual_projection.weight"]
    widths = (int(text_encoder.config.hidden_size), int(image_encoder.config.hidden_size))  # type: ignore[union-attr, arg-type]
    return (text, visual) if (text.shape[1], visual.shape[1]) == widths else None
