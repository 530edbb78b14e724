"""Tiled decoding with and without the whole image's statistics, against decoding at once.

    python benchmarks/tiles.py --base checkpoints/tiny

Portraits of validation people, rendered at `--size`, go through the VAE and back in three ways: whole, in diffusers'
tiles, and in the same tiles with the statistics of the whole image (`promptnet.inference.vae`). Printed are the
mean absolute differences of colours in [-1, 1] to the whole decoding and to the image itself, and the time as a ratio
to diffusers' tiles, the median over runs one after the other.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.images.crop import to_pixels
from promptnet.inference.vae import decode_in_tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("checkpoints/tiny"))
    parser.add_argument("--size", type=int, default=256, help="side of the images, in pixels")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    vae: Any = AutoencoderKL.from_pretrained(asked.base / "vae", torch_dtype=torch.float32, use_safetensors=True)
    with torch.no_grad():
        images = avatars(asked.images, asked.size)
        latents = torch.cat([vae.encode(image).latent_dist.mode() for image in images.split(1)])
        whole, tiled, ours = decoded(vae, latents)
        for name, found in (("whole", whole), ("diffusers' tiles", tiled), ("with whole statistics", ours)):
            to_whole, to_image = ((found - other).abs().mean().item() for other in (whole, images))
            print(f"{name:22} to whole {to_whole:.4f}  to the image {to_image:.4f}")
        print(f"time, with whole statistics / diffusers' tiles: {time_ratio(vae, latents[:1], asked.runs):.2f}")


def avatars(count: int, size_px: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1]."""
    people = [sample_avatar(0, index, "validation") for index in range(count)]
    return torch.stack([to_pixels(render_avatar(person, size_px)) for person in people])


def decoded(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three ways; leaves tiling enabled."""
    whole = _each(vae.decode, latents)
    vae.enable_tiling()
    return whole, _each(vae.decode, latents), decode_in_tiles(vae, latents)


def _each(decode: Callable[..., tuple[Tensor, ...]], latents: Tensor) -> Tensor:
    return torch.cat([decode(one, return_dict=False)[0] for one in latents.split(1)])


def time_ratio(vae: Any, latents: Tensor, runs: int) -> float:
    """The median over pairs."""
    ratios = []
    for _ in range(runs):
        started = time.perf_counter()
        vae.decode(latents)
        between = time.perf_counter()
        decode_in_tiles(vae, latents)
        ratios.append((time.perf_counter() - between) / (between - started))
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
