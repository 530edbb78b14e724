"""Latents of a data set's images, encoded once and kept on disk under a hash of images and encoder."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    import datasets
    from diffusers import AutoencoderKL


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of a model's weights, names and shapes included."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def latent_path(data: datasets.Dataset, vae: AutoencoderKL, cache_dir: str | Path) -> Path:
    """Where the latents of exactly these images under exactly this encoder are kept."""
    return Path(cache_dir) / f"latents-{data._fingerprint}-{weights_hash(vae)}.safetensors"


@torch.no_grad()
def encode_latents(
    data: datasets.Dataset, vae: AutoencoderKL, cache_dir: str | Path, batch_size: int = 64
) -> torch.Tensor:
    """Scaled latents (N, 4, h, w), float32, of every image of `data`; read from the cache where they are there.

    Latents are the modes of the encoder's posterior times its scaling factor, so their variance is about one.
    """
    path = latent_path(data, vae, cache_dir)
    latents = _kept(path, len(data))
    if latents is None:
        rows = [_encode(vae, data[start : start + batch_size]["image"]) for start in range(0, len(data), batch_size)]
        latents = torch.cat(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        save_file({"latents": latents}, draft)
        draft.replace(path)
    return latents.float()


def _kept(path: Path, number: int) -> torch.Tensor | None:
    """The latents in a file; None where there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        latents = load_file(path)["latents"]
        if len(latents) == number:
            return latents
    except (SafetensorError, OSError, KeyError):
        pass
    warnings.warn(f"the latents in {path} are damaged: they are computed again", stacklevel=3)
    return None


def _encode(vae: AutoencoderKL, images: list[Any]) -> torch.Tensor:
    from promptnet.datasets.avatars.module import pixels_of

    pixels = torch.stack([pixels_of(image) for image in images]).to(vae.device, vae.dtype)
    encoded: Any = vae.encode(pixels)
    latents = encoded.latent_dist.mode() * vae.config["scaling_factor"]
    return latents.to("cpu", torch.float16).contiguous()
