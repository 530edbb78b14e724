"""Rendered people on disk: memory-mapped shards that are drawn once, each a function of (seed, split, place) alone.

Records are not stored: they are functions of the same numbers. A shard is written to a draft and renamed, so a run that
stops while it renders goes on with the next shard.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from promptnet.datasets.avatars.captions import sample_fields
from promptnet.datasets.avatars.colours import draw_color
from promptnet.datasets.avatars.frames import sample_frame
from promptnet.datasets.avatars.person import Avatar, Split, World, changed, sample_attributes, sample_avatar
from promptnet.datasets.avatars.render import render, render_avatar, to_svg

Role = Literal["target", "reference", "twin"]
SHARD = 2048
"""Images in one file, unless said otherwise."""


@functools.lru_cache(maxsize=65536)
def avatar_of(seed: int, index: int, split: Split, world: World = "known") -> Avatar:
    """`sample_avatar`, remembered."""
    return sample_avatar(seed, index, split, world)


def pair_of(seed: int, index: int, split: Split, world: World = "known") -> tuple[Avatar, Avatar, frozenset[str]]:
    """Return reference and target of pair `index`, and the attribute fields that its prompt names."""
    target = avatar_of(seed, index, split, world)
    reference, fields = reference_for(target, random.Random(f"promptnet pair {seed} {split} {world} {index}"))
    return reference, target, fields


def reference_for(target: Avatar, rng: random.Random) -> tuple[Avatar, frozenset[str]]:
    """Draw a reference of the target's person, and the attribute fields that a prompt has to name.

    The target differs from the reference in what the prompt names, and in nothing else.
    """
    fields = sample_fields(rng)
    others = sample_attributes(target.identity.style, rng)
    return Avatar(target.identity, changed(target.attributes, others, set(fields))), fields


def render_target(seed: int, index: int, split: Split, world: World, size_px: int) -> Image.Image:
    """Render the `index`-th avatar of the stream in its plain frame."""
    return render_avatar(avatar_of(seed, index, split, world), size_px)


def render_reference(seed: int, index: int, split: Split, world: World, size_px: int) -> Image.Image:
    """Render the reference of pair `index` as some camera, site or phone left it."""
    reference, _, _ = pair_of(seed, index, split, world)
    frame = sample_frame(random.Random(f"promptnet frame {seed} {split} {world} {index}"))
    large = render(reference.identity, reference.attributes, 2 * size_px)
    framed = frame(large, reference.attributes.background)
    return framed.resize((size_px, size_px), Image.Resampling.LANCZOS)


def twin_of(seed: int, index: int, split: Split, world: World = "known") -> Avatar:
    """Return the person of avatar `index` in other colours, with other attributes: the same shapes, nothing else."""
    who = avatar_of(seed, index, split, world).identity
    rng = random.Random(f"promptnet twin {seed} {split} {world} {index}")
    recoloured = replace(who, skin=draw_color("skin", rng), hair_color=draw_color("hair_color", rng))
    return Avatar(recoloured, sample_attributes(who.style, rng))


def render_twin(seed: int, index: int, split: Split, world: World, size_px: int) -> Image.Image:
    """Render the `index`-th avatar's twin in its plain frame."""
    return render_avatar(twin_of(seed, index, split, world), size_px)


_RENDER: dict[Role, Callable[[int, int, Split, World, int], Image.Image]] = {
    "target": render_target,
    "reference": render_reference,
    "twin": render_twin,
}


class RenderedAvatars:
    """Images of the stream's people, rendered when they are first asked for, as rows {"image", **words of the record}.

    Args:
        cache_dir: where shards are kept.
        split: "train", "validation" or "test".
        num_images: how many.
        seed: of the stream.
        size_px: side of the images.
        role: "target" in the plain frame, the framed "reference" of the same person, or its "twin" in other colours.
        world: what people are drawn from.
        shard_size: images rendered together; no more than `num_images`.
    """

    def __init__(
        self,
        cache_dir: str | Path,
        split: Split,
        num_images: int,
        *,
        seed: int = 0,
        size_px: int = 64,
        role: Role = "target",
        world: World = "known",
        shard_size: int = SHARD,
    ) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1")
        self.split: Split = split
        self.role: Role = role
        self.world: World = world
        self.num_images, self.seed, self.size_px = num_images, seed, size_px
        self.shard_size = min(shard_size, num_images)
        name = f"{role}-{split}-{world}-{seed}-{size_px}px-{self.shard_size}-{drawing_hash(role)}"
        self.folder = Path(cache_dir) / name
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"image": self.image(place), **self.avatar(place).record()}

    def avatar(self, index: int) -> Avatar:
        """Return the record of image `index`."""
        if self.role == "reference":
            return pair_of(self.seed, index, self.split, self.world)[0]
        if self.role == "twin":
            return twin_of(self.seed, index, self.split, self.world)
        return avatar_of(self.seed, index, self.split, self.world)

    def image(self, index: int) -> Image.Image:
        """Return image `index`."""
        return Image.fromarray(self.pixels(index))

    def pixels(self, index: int) -> np.ndarray:
        """Return image `index` as (S, S, 3) uint8; its shard is rendered where nobody has done so before."""
        shard, place = divmod(index, self.shard_size)
        return np.array(self.shard(shard)[place])

    def shard(self, shard: int) -> np.ndarray:
        """Return all images of one shard, (N, S, S, 3) uint8, memory-mapped; rendered if they are not there yet.

        Rendering takes half a minute for 2048 images.
        """
        if shard not in self._shards:
            if self._opened(shard) is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._render(shard)
            self._shards[shard] = np.load(self._path(shard), mmap_mode="r")
        return self._shards[shard]

    def _opened(self, shard: int) -> np.ndarray | None:
        """The images of a shard's file; None where there is none, or a damaged one."""
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            images = np.load(path, mmap_mode="r")
            if images.shape == (self.shard_size, self.size_px, self.size_px, 3):
                return images
        except (ValueError, OSError, EOFError):
            pass
        warnings.warn(f"the images in {path} are damaged: they are rendered again", stacklevel=4)
        return None

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.npy"

    def _render(self, shard: int) -> None:
        start = shard * self.shard_size
        images = [
            np.asarray(_RENDER[self.role](self.seed, index, self.split, self.world, self.size_px))
            for index in range(start, start + self.shard_size)
        ]
        draft = self._path(shard).with_suffix(f".{os.getpid()}.draft")
        with draft.open("wb") as file:
            np.save(file, np.stack(images))
        draft.replace(self._path(shard))


_DRAWN: dict[Role, Callable[[int, int, Split], Avatar]] = {
    "target": avatar_of,
    "reference": lambda seed, index, split: pair_of(seed, index, split)[0],
    "twin": twin_of,
}


@functools.cache
def drawing_hash(role: Role) -> str:
    """Hash what some avatars look like: shards drawn by other code than today's must not be found again."""
    digest = hashlib.blake2b(digest_size=6)
    for index in range(40):
        avatar = _DRAWN[role](0, index, "train")
        digest.update(to_svg(avatar.identity, avatar.attributes).encode())
        if role == "reference":
            digest.update(repr(sample_frame(random.Random(index))).encode())
    return digest.hexdigest()
