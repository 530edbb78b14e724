"""Base models of the Stable Diffusion family as pretraining needs them: loaded, or their shapes alone.

SD 1.x and SD 2.x have one text encoder and differ in widths and in what they predict, which their configs say. SDXL has
two encoders (promptnet.models.text_encoders), and its U-Net wants a pooled state and six numbers on sizes as well
(promptnet.models.micro_conditioning).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
)

from promptnet.models.text_encoders import TextEncoders


class UnusableModelError(ValueError):
    """A base model, an image encoder or a CLIP that cannot be loaded."""


_SHAPES_ONLY: ContextVar[bool] = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """For the length of the block, `load_base` gives networks without weights, on the meta device."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


@dataclass(frozen=True)
class BaseModel:
    """What pretraining needs of a base model and an image encoder.

    Attributes:
        networks: by the component's name: vae, unet, text_encoder, image_encoder, and for SDXL text_encoder_2.
        tokenizers: one for each text encoder.
        scheduler: gives noise levels and prediction type.
        image_processor: the image encoder's preprocessing, None where the base model's folder has none.
        forces_zeros: whether SDXL's U-Net draws with zeros for a negative prompt that is not given.
    """

    networks: dict[str, nn.Module]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    image_processor: Any
    forces_zeros: bool = True

    def text_encoders(self) -> TextEncoders:
        """The text encoders with their tokenizers."""
        names = ("text_encoder", "text_encoder_2")[: len(self.tokenizers)]
        return TextEncoders.of(self.tokenizers, [self.networks[name] for name in names])


def load_base(base: str, vision: str | None = None) -> BaseModel:
    """Load a base model and an image encoder, from safetensors only.

    Args:
        base: a diffusers folder or a hub id.
        vision: a folder or hub id of a CLIP image encoder (or of a whole CLIP); None takes the base's `image_encoder`.

    Raises:
        ValueError: no image encoder is given and the base has none.
    """
    if _SHAPES_ONLY.get():
        return _shapes_of(base, vision)
    if vision is None and Path(base).is_dir() and not (Path(base) / "image_encoder").is_dir():
        raise ValueError(
            f"The base model '{base}' has no image encoder (image_encoder): name one with vision_id, for example "
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        )
    safe: dict[str, Any] = {"use_safetensors": True}
    networks: dict[str, Any] = {
        "vae": part_of(AutoencoderKL, base, "vae", **safe),
        "unet": part_of(UNet2DConditionModel, base, "unet", **safe),
        "text_encoder": part_of(CLIPTextModel, base, "text_encoder", **safe),
        "image_encoder": part_of(CLIPVisionModel, vision or base, None if vision else "image_encoder", **safe),
    }
    has_two = networks["unet"].config.addition_embed_type == "text_time"
    if has_two:
        networks["text_encoder_2"] = part_of(CLIPTextModelWithProjection, base, "text_encoder_2", **safe)
    return BaseModel(
        networks,
        tuple(
            part_of(CLIPTokenizer, base, name) for name in (("tokenizer", "tokenizer_2") if has_two else ("tokenizer",))
        ),
        _noise_levels(base),
        _image_processor(base, vision),
        forces_zeros(base) if has_two else True,
    )


def _noise_levels(base: str) -> DDIMScheduler:
    """The base model's noise levels, for latents: a config that says nothing of `clip_sample` would have it on."""
    return part_of(DDIMScheduler, base, "scheduler", clip_sample=False)


def forces_zeros(base: str | Path) -> bool:
    """`force_zeros_for_empty_prompt` of an SDXL base model's index; where there is no index, as SDXL itself has it.

    Args:
        base: a diffusers folder or a hub id.
    """
    if Path(base).is_dir() and not (Path(base) / "model_index.json").is_file():
        return True
    index: Any = DiffusionPipeline.load_config(str(base))
    return index.get("force_zeros_for_empty_prompt", True)


def part_of(kind: Any, place: str, folder: str | None = None, **options: Any) -> Any:
    """Load a part of a base model or CLIP.

    Args:
        kind: its class.
        place: a folder or a hub id.
        folder: the part's folder in it; None where the part is all there is.
        options: of `from_pretrained`.

    Raises:
        UnusableModelError: it is not there, or not of this kind.
    """
    where: dict[str, Any] = {} if folder is None else {"subfolder": folder}
    try:
        return kind.from_pretrained(place, **where, **options)
    except (OSError, ValueError) as error:
        what = f"'{place}'" + (f" has no '{folder}' that" if folder else ", which")
        is_here = Path(place).is_dir()
        where_it_is = "a folder of this machine" if is_here else "no folder of this machine, and no hub gave it"
        raise UnusableModelError(
            f"{what} {kind.__name__} could be loaded from; it is {where_it_is}. Download it first, or name another "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _image_processor(base: str, vision: str | None) -> Any:
    if vision is not None:
        return part_of(CLIPImageProcessor, vision)
    if Path(base).is_dir() and not (Path(base) / "feature_extractor").is_dir():
        return None
    return part_of(CLIPImageProcessor, base, "feature_extractor")


def _shapes_of(base: str, vision: str | None) -> BaseModel:
    from promptnet.models import base_model_shapes as shapes

    networks, scheduler = shapes.base_parts(base)
    text_encoder = shapes.image_encoder(vision or "", base)
    texts = [network for name, network in networks.items() if name.startswith("text_encoder")]
    tokenizers = tuple(shapes.any_tokenizer(_settings(text).max_position_embeddings) for text in texts)
    return BaseModel(
        {**networks, "image_encoder": text_encoder}, tokenizers, scheduler, shapes.image_processor(text_encoder)
    )


def _settings(network: Any) -> Any:
    return network.config


@dataclass(frozen=True)
class VisionInput:
    """How an image becomes the image encoder's input: scaled to its size, and its values shifted.

    Attributes:
        size_px: side of the encoder's square.
        mean: of each channel in [0, 1].
        std: the same.
    """

    size_px: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, processor: Any, text_encoder: Any) -> VisionInput:
        """What a CLIPImageProcessor does to a square image; without one, values stay in [-1, 1]."""
        if processor is None:
            return cls(text_encoder.config.image_size)
        return cls(text_encoder.config.image_size, tuple(processor.image_mean), tuple(processor.image_std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Squares (B, 3, S, S) in [-1, 1] -> (B, 3, size, size)."""
        if pixels.shape[-1] != self.size_px:
            sides = (self.size_px, self.size_px)
            pixels = F.interpolate(pixels.float(), sides, mode="bicubic", antialias=True).clamp(-1, 1)
        if {*self.mean, *self.std} == {0.5}:
            return pixels
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return ((pixels + 1) / 2 - mean) / std
