"""CLIP models as judges of prompts, behind one interface: the nine of OpenAI by name, or one of your own.

A folder in transformers' layout is read by transformers. Any other file of weights is read into open-clip's network of
that name, because transformers has no CLIP with a ResNet. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from promptnet.inference.values import did_you_mean
from promptnet.io.network_weights import check_weights, read_weights

OWN = "own"
CLIP_MODELS = {
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
    "RN101": "RN101",
    "RN50": "RN50",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
}
"""Name in ProFusion's table -> name in open-clip."""
_VISION = {  # width, patch and side of the image encoder
    "ViT-B/32": (768, 32, 224),
    "ViT-B/16": (768, 16, 224),
    "ViT-L/14": (1024, 14, 224),
    "ViT-L/14@336px": (1024, 14, 336),
}
_NUMBERS_OF_OPENAI = ("input_resolution", "context_length", "vocab_size")


class ClipModel(Protocol):
    """Map images and texts to unit vectors of one space."""

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit rows (N, D)."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit rows (N, D); a text that is too long is cut off."""
        ...


def prompt_similarity(clip: ClipModel, prompts: Sequence[str], images: Sequence[Image.Image]) -> Tensor:
    """Return the cosine of image i and prompt i, (N,).

    Raises:
        ValueError: the numbers of prompts and images differ.
    """
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts and {len(images)} images do not go together one by one")
    return (clip.texts(prompts) * clip.images(images)).sum(dim=1)


def direction_similarity(clip: ClipModel, before: Tensor, after: Tensor, texts: tuple[str, str]) -> Tensor:
    """Return cos(after - before, text_1 - text_0), (N,): whether images changed as the text did; 0 where none changed.

    Args:
        clip: of the features.
        before: (N, D) unit features of the unedited images.
        after: (N, D) of the edited ones.
        texts: without and with the attribute.
    """
    without, with_it = clip.texts(texts)
    return F.cosine_similarity(after - before, (with_it - without)[None], dim=1)


class TransformersClip:
    """A CLIP of transformers.

    Args:
        model: a CLIPModel.
        tokenizer: its tokenizer.
        image_processor: its preprocessing.
        batch: images at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, batch: int = 32) -> None:
        self.model, self.tokenizer, self.image_processor = (
            model.eval().requires_grad_(False),
            tokenizer,
            image_processor,
        )
        self.batch = batch

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit rows (N, D)."""
        parts = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        return torch.cat([self._part([image.convert("RGB") for image in part]) for part in parts])

    def _part(self, images: list[Image.Image]) -> Tensor:
        pixels = self.image_processor(images=images, return_tensors="pt").pixel_values
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit rows (N, D)."""
        length = self.model.config.text_config.max_position_embeddings
        how: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
        tokens = self.tokenizer(list(texts), **how, return_tensors="pt").to(self.model.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=1).cpu()


class OpenClip:
    """A CLIP of open-clip.

    Args:
        model: of `open_clip.create_model_and_transforms`.
        preprocess: an image -> (3, H, W).
        tokenizer: texts -> (N, T).
        device: where it computes.
        batch: images at a time.
    """

    def __init__(self, model: Any, preprocess: Any, tokenizer: Any, device: str = "cpu", batch: int = 32) -> None:
        self.model, self.preprocess, self.tokenizer = model.eval().requires_grad_(False), preprocess, tokenizer
        self.device, self.batch = device, batch

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit rows (N, D)."""
        found = []
        for start in range(0, len(images), self.batch):
            pixels = [self.preprocess(image.convert("RGB")) for image in images[start : start + self.batch]]
            found.append(self.model.encode_image(torch.stack(pixels).to(self.device)).float().cpu())
        return F.normalize(torch.cat(found), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit rows (N, D)."""
        found = self.model.encode_text(self.tokenizer(list(texts)).to(self.device))
        return F.normalize(found.float().cpu(), dim=1)


def check_clip(name: str, place: Path | None) -> None:
    """Check a CLIP before anything is loaded.

    Args:
        name: a key of `CLIP_MODELS`, or "own".
        place: a folder in transformers' layout or a file of weights; None with "own" is the base model's CLIP.

    Raises:
        ValueError: the name is not known, or there is nothing of that kind.
        ModuleNotFoundError: the file needs open-clip, which is not installed.
    """
    if name != OWN and name not in CLIP_MODELS:
        known = (OWN, *CLIP_MODELS)
        raise ValueError(f"there is no CLIP model {name!r}{did_you_mean(name, known)}: choose from {', '.join(known)}")
    if place is None and name == OWN:
        return
    if place is None:
        raise ValueError(f"the CLIP model {name!r} needs a folder or a file of weights; nothing is downloaded")
    if place.is_dir():
        _check_folder(name, place)
        return
    if name == OWN:
        raise ValueError(f"the CLIP model 'own' must be a folder in transformers' layout, and '{place}' is none")
    check_weights(place, f"the CLIP model {name!r}")
    if find_spec("open_clip") is None:
        raise ModuleNotFoundError(
            f"the CLIP model {name!r} of '{place}' needs open-clip, which is in no extra of promptnet: "
            "pip install open-clip-torch" + (", or name a folder in transformers' layout" if name in _VISION else "")
        )


def _check_folder(name: str, folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder}' is no CLIP in transformers' layout: it has no config.json that reads") from error
    if config.get("model_type") != "clip" or "vision_config" not in config:
        raise ValueError(f"'{folder}' is no whole CLIP in transformers' layout: it needs both encoders")
    if name == OWN:
        return
    from transformers import CLIPConfig

    vision: Any = CLIPConfig.from_dict(config).vision_config
    found = (vision.hidden_size, vision.patch_size, vision.image_size)
    if found != _VISION.get(name):
        raise ValueError(
            f"'{folder}' is not {name}: its image encoder has width, patch and side {found}; one of your own goes by "
            "the name 'own'"
        )


def load_clip_model(name: str, place: Path | None, base: Path | None = None, device: str = "cpu") -> ClipModel:
    """Load a CLIP.

    Args:
        name: as `check_clip`.
        place: as `check_clip`.
        base: folder of the base model, whose CLIP "own" is.
        device: where it computes.

    Raises:
        ValueError: see `check_clip`, or the file holds another network.
        ModuleNotFoundError: see `check_clip`.
    """
    check_clip(name, place)
    if place is None:
        assert base is not None
        return _own(base, device)
    return _from_folder(place, device) if place.is_dir() else _open_clip(name, place, device)


def _own(base: Path, device: str) -> TransformersClip:
    from transformers import CLIPImageProcessor, CLIPTokenizer

    from promptnet.models.tiny import load_clip

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    processor = CLIPImageProcessor.from_pretrained(base / "feature_extractor")
    return TransformersClip(nn.Module.to(load_clip(base), device), tokenizer, processor)


def _from_folder(folder: Path, device: str) -> TransformersClip:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, use_safetensors=True).float()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    return TransformersClip(nn.Module.to(model, device), tokenizer, processor)


def _open_clip(name: str, weights: Path, device: str) -> OpenClip:
    import open_clip  # pyright: ignore[reportMissingImports]  (in no extra)

    # OpenAI's models have the quick GELU, which weights do not say.
    model, _, preprocess = open_clip.create_model_and_transforms(
        CLIP_MODELS[name], pretrained=None, force_quick_gelu=True
    )
    found = read_weights(weights, f"the CLIP model {name!r}")
    found = {key: value for key, value in found.items() if key not in _NUMBERS_OF_OPENAI}
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"'{weights}' is not {name}: {' '.join(str(error).split())[:160]}") from error
    return OpenClip(model.float().to(device), preprocess, open_clip.get_tokenizer(CLIP_MODELS[name]), device)
