"""What a pipeline keeps of a reference image: its latents at the trained size, and what the image encoder saw."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from promptnet.images.crop import square, to_pixels
from promptnet.images.load import Source, open_image
from promptnet.inference.vae import decode_in_tiles, encode_in_tiles, is_encoded_in_tiles, is_tiled
from promptnet.models.twins import twin


class EncodedReferences(NamedTuple):
    """Reference images as PromptNet reads them.

    Args:
        latents: (K, C, h, w), scaled VAE latents.
        vision_states: (K, T, V), the image encoder's last hidden state, before its post layer norm.
    """

    latents: Tensor
    vision_states: Tensor


def open_references(images: Source | Sequence[Source]) -> list[Any]:
    """One image or several as upright RGB images.

    Raises:
        ValueError: there is none, or one cannot be used.
    """
    sources: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
    if not sources:
        raise ValueError("There is no reference image: give one or several.")
    return [open_image(source) for source in sources]


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w), the mode of the posterior, of images (B, 3, H, W) in [-1, 1].

    In tiles where the VAE is told to. As in `decode_latents`, a float16 VAE that overflows computes in float32; its
    latents are float16 again.
    """
    computing = _without_overflow(vae)
    pixels = pixels.to(computing.dtype)
    tiled = is_encoded_in_tiles(computing, pixels)
    latents = encode_in_tiles(computing, pixels) if tiled else computing.encode(pixels).latent_dist.mode()
    return ((latents - _shift(vae)) * vae.config.scaling_factor).to(vae.dtype)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in about [-1, 1] of scaled latents; in tiles where the VAE is told to.

    Only for latents that ask for gradients a graph is made. Without, a float16 VAE that overflows (`force_upcast`, such
    as SDXL's) computes in float32, as in diffusers.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
        vae = _without_overflow(vae)
        latents = latents.to(vae.dtype) / vae.config.scaling_factor + _shift(vae)
        return decode_in_tiles(vae, latents) if is_tiled(vae, latents) else vae.decode(latents, return_dict=False)[0]


def decode_finite(vae: Any, latents: Tensor) -> Tensor:
    """Finished images (B, 3, H, W) in [-1, 1] of scaled latents.

    Raises:
        ValueError: latents or images hold no numbers; see `check_finite`.
    """
    check_finite(latents)
    images = decode_latents(vae, latents)
    check_finite(images)
    return images.clamp(-1, 1)


def check_finite(values: Tensor) -> None:
    """Refuse results (B, ...) that hold no numbers: as images they would be black, and nothing would say why.

    Raises:
        ValueError: names them and what to change.
    """
    bad = [str(place) for place, one in enumerate(values, start=1) if not bool(one.isfinite().all())]
    if bad:
        raise ValueError(
            f"Image {', '.join(bad)} of {len(values)} holds values that are not finite: the networks overflowed in "
            f"{str(values.dtype).removeprefix('torch.')}. Load the pipeline in bfloat16 or float32, lower the scales "
            "of guidance, or check the weights and latents that it was given."
        )


def _shift(vae: Any) -> float:
    """Return what latents are shifted by; some kinds of VAE have no such setting."""
    return vae.config.get("shift_factor") or 0.0


def _without_overflow(vae: Any) -> Any:
    """The VAE; a twin in float32 where float16 would not do, and no backward pass is to find the weights.

    A VAE that is offloaded layer by layer has no weights to copy: it is switched itself and stays in float32, as
    diffusers' own pipelines leave it.
    """
    if torch.is_grad_enabled() or vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        return vae
    if any(weight.is_meta for weight in vae.parameters()):
        return vae.to(torch.float32)
    return twin(vae, torch.float32)


@torch.no_grad()
def encode_references(
    vae: Any, image_encoder: Any, feature_extractor: Any, images: Sequence[Any], size_px: int, device: Any
) -> EncodedReferences:
    """Encode opened images.

    Each is cropped to its central square: for the VAE at the trained size, for the image encoder at that encoder's.

    Args:
        vae: the base model's.
        image_encoder: a CLIP image encoder; without one there are no vision states, (K, 0, 0).
        feature_extractor: its CLIPImageProcessor.
        images: K RGB images.
        size_px: side of the images that the base model was trained on.
        device: where to compute.
    """
    pixels = torch.stack([to_pixels(square(image, size_px)) for image in images])  # (K, 3, H, W)
    latents = encode_pixels(vae, pixels.to(device))
    if image_encoder is None:
        return EncodedReferences(latents, latents.new_zeros(len(images), 0, 0))
    return EncodedReferences(latents, vision_states(image_encoder, feature_extractor, images, device))


@torch.no_grad()
def vision_states(image_encoder: Any, feature_extractor: Any, images: Sequence[Any], device: Any) -> Tensor:
    """Return the image encoder's last hidden state for the central squares of opened images, (K, T, V).

    Args:
        image_encoder: a CLIP image encoder.
        feature_extractor: its CLIPImageProcessor.
        images: K RGB images.
        device: where to compute.
    """
    squares = [square(image, min(image.size)) for image in images]
    features = feature_extractor(images=squares, return_tensors="pt").pixel_values
    return image_encoder(features.to(device, image_encoder.dtype)).last_hidden_state
