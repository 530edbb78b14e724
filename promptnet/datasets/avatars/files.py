"""Procedural avatars as a folder of files: one sub-folder a person, beside each image its caption.

That is how people's own photographs lie on a disk, so the embedded model's encoder can be trained by the very steps
that a real one takes, from `promptnet prepare` on.
"""

from __future__ import annotations

from pathlib import Path

from promptnet.datasets.avatars.captions import caption, sample_fields
from promptnet.datasets.avatars.person import Avatar, Split, sample_attributes, sample_identity
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.stream import sample_rng


def write_avatars(
    folder: str | Path, split: Split, num_images: int, *, seed: int = 0, size_px: int = 64, images_per_person: int = 4
) -> list[Path]:
    """Write image i to `<person>/<i>.png` and its caption to `<person>/<i>.txt`.

    Image i shows person `i // images_per_person` of the split's stream, with attributes of its own. A caption mentions
    some of them and S*, for example "a sad portrait of S*, wearing sunglasses".

    Args:
        folder: to write to; made, with those above it.
        split: "train", "validation", "test" or "judge"; the splits share no identity.
        num_images: how many.
        seed: of people, attributes and captions.
        size_px: side of the images.
        images_per_person: how many in each sub-folder; with two or more, a person may be another image's reference.

    Returns:
        The images' paths.

    Raises:
        ValueError: a number is below 1.
    """
    if min(num_images, images_per_person) < 1:
        raise ValueError(f"num_images={num_images} and images_per_person={images_per_person} must be at least 1")
    return [
        _write(Path(folder), split, seed, index // images_per_person, index, size_px) for index in range(num_images)
    ]


def _write(folder: Path, split: Split, seed: int, person: int, index: int, size_px: int) -> Path:
    identity = sample_identity(seed, person, split)
    avatar = Avatar(identity, sample_attributes(identity.style, sample_rng(seed, index, f"attributes {split}")))
    place = folder / f"{split}-{seed}-{person:06d}" / f"{index:06d}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    render_avatar(avatar, size_px).save(place)
    place.with_suffix(".txt").write_text(_caption(avatar, seed, index) + "\n", "utf-8")
    return place


def _caption(avatar: Avatar, seed: int, index: int) -> str:
    """Name attributes drawn for this image, in an order drawn for it."""
    rng = sample_rng(seed, index, "caption")
    return caption(avatar.record(), subject="S*", fields=sample_fields(rng, neutral=0.0), rng=rng)
