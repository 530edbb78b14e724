"""Latents of rendered people, encoded a shard at a time when they are first asked for, and kept beside the images."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from promptnet.datasets.avatars.rendered import RenderedAvatars
from promptnet.datasets.weights_hash import weights_hash


def encoder_hash(vae: Any) -> str:
    """Hash all that latents depend on: the encoder's weights and the scaling factor."""
    parts = torch.nn.ModuleList([vae.encoder, vae.quant_conv])
    return hashlib.blake2b(f"{weights_hash(parts)} {vae.config['scaling_factor']}".encode(), digest_size=8).hexdigest()


class AvatarLatents:
    """Scaled latents by place in the stream: the modes of the encoder's posterior times its scaling factor.

    Args:
        people: the images.
        vae: the autoencoder; latents of another encoder are never taken for its own. The decoder may change.
        batch_size: images encoded together.
    """

    def __init__(self, people: RenderedAvatars, vae: Any, batch_size: int = 32) -> None:
        self.people, self.vae, self.batch_size = people, vae, batch_size
        self.name = f"latents-{encoder_hash(vae)[:12]}"
        self._shards: dict[int, torch.Tensor] = {}

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        """Return latents (B, 4, h, w), float32, of the images at these places (B,)."""
        places = [divmod(int(index), self.people.shard_size) for index in indices]
        return torch.stack([self.shard(shard)[place].float() for shard, place in places])

    def shard(self, shard: int) -> torch.Tensor:
        """Return the latents (N, 4, h, w), float16, of one shard."""
        if shard not in self._shards:
            path = self.people.folder / f"{self.name}-{shard:05d}.safetensors"
            kept = _kept(path, self.people.shard_size)
            self._shards[shard] = self._write(shard, path) if kept is None else kept
        return self._shards[shard]

    def _write(self, shard: int, path: Path) -> torch.Tensor:
        latents, draft = self._encode(shard), path.with_suffix(f".{os.getpid()}.draft")
        save_file({"latents": latents}, draft)
        draft.replace(path)
        return latents

    @torch.no_grad()
    def _encode(self, shard: int) -> torch.Tensor:
        images = torch.from_numpy(np.array(self.people.shard(shard)))
        # Kept for other runs too: they must not depend on the precision of the step that asks first.
        with torch.autocast(self.vae.device.type, enabled=False):
            return torch.cat([self._encode_batch(batch) for batch in images.split(self.batch_size)])

    def _encode_batch(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).to(self.vae.device, self.vae.dtype) / 127.5 - 1
        latents = self.vae.encode(pixels).latent_dist.mode() * self.vae.config["scaling_factor"]
        return latents.to("cpu", torch.float16).contiguous()


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
    warnings.warn(f"the latents in {path} are damaged: they are computed again", stacklevel=4)
    return None
