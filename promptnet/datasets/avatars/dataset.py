"""Procedural avatars as a Hugging Face `Dataset`, rendered once and cached on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.datasets.avatars.render import FIELDS, Attributes, AvatarRecord, Identity, Split, sample_avatar

if TYPE_CHECKING:
    from datasets import Dataset


def avatar_dataset(
    split: Split,
    num_images: int,
    *,
    seed: int = 0,
    size_px: int = 64,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Portraits of one split as a map-style data set with the columns `image` (RGB) and one string column a field.

    Item i is `sample_avatar(seed, i, split)`. The arrow files are cached (by default where `datasets` caches) under a
    fingerprint of the arguments and of this package's drawing code; asking again costs nothing.

    Args:
        split: "train", "validation" or "test"; the splits share no identity.
        num_images: how many.
        seed: of the stream of avatars.
        size_px: side of the images.
        cache_dir: where the rendered set is kept.
        num_proc: rendering processes; None takes every core.
    """
    import datasets

    if num_images < 1:
        raise ValueError(f"num_images={num_images} must be at least 1")
    features = datasets.Features({"image": datasets.Image(), **{field: datasets.Value("string") for field in FIELDS}})
    num_proc = num_proc or os.cpu_count() or 1
    where: Any = None if cache_dir is None else str(cache_dir)
    data = datasets.Dataset.from_generator(
        _rendered,
        features=features,
        cache_dir=where,
        num_proc=num_proc if num_images >= 1000 and num_proc > 1 else None,
        gen_kwargs={
            "indices": list(range(num_images)),
            "seed": seed,
            "split": split,
            "size_px": size_px,
            "drawing": _renderer_hash(),
        },
    )
    return data  # type: ignore[return-value]


def avatar_of(row: dict[str, Any]) -> AvatarRecord:
    """The record in one row of `avatar_dataset`."""
    return AvatarRecord(
        Identity(**{field: row[field] for field in Identity.__dataclass_fields__}),
        Attributes(**{field: row[field] for field in Attributes.__dataclass_fields__}),
    )


def _rendered(indices: list[int], seed: int, split: Split, size_px: int, drawing: str) -> Iterator[dict[str, Any]]:
    for index in indices:
        avatar = sample_avatar(seed, index, split)
        yield {"image": avatar.render(size_px), **avatar.record()}


def _renderer_hash() -> str:
    """A cached set drawn by other code than today's must not be found again."""
    import hashlib

    from promptnet.datasets.avatars import render as avatars

    return hashlib.blake2b(Path(avatars.__file__).read_bytes(), digest_size=8).hexdigest()
