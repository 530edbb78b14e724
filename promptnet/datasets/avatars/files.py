"""Procedural avatars as a folder of files: one sub-folder a person, beside each image its caption.

That is how people's own photographs lie on a disk, so the embedded model's encoder can be trained by the very steps
that a real one takes, from `promptnet prepare` on.
"""

from __future__ import annotations

from pathlib import Path

from promptnet.datasets.avatars.captions import caption
from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, Attributes, Split, sample_avatar
from promptnet.datasets.stream import sample_rng


def write_avatars(folder: str | Path, split: Split, num_images: int, *, seed: int = 0, size_px: int = 64) -> list[Path]:
    """Write avatar i, `sample_avatar(seed, i, split)`, to `<person>/<i>.png` and its caption to `<person>/<i>.txt`.

    A caption mentions some of the avatar's attributes and S*, for example "a sad portrait of S*, wearing sunglasses".

    Args:
        folder: to write to; made, with those above it.
        split: "train", "validation" or "test"; the splits share no identity.
        num_images: how many.
        seed: of avatars and captions.
        size_px: side of the images.

    Returns:
        The images' paths.

    Raises:
        ValueError: `num_images` is below 1.
    """
    if num_images < 1:
        raise ValueError(f"num_images={num_images} must be at least 1")
    return [_write(Path(folder), split, index, seed, size_px) for index in range(num_images)]


def _write(folder: Path, split: Split, index: int, seed: int, size_px: int) -> Path:
    avatar = sample_avatar(seed, index, split)
    place = folder / "-".join(avatar.identity.record().values()) / f"{index:06d}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    avatar.render(size_px).save(place)
    place.with_suffix(".txt").write_text(_caption(avatar.attributes, seed, index) + "\n", "utf-8")
    return place


def _caption(attributes: Attributes, seed: int, index: int) -> str:
    """Each attribute kept with a probability drawn for this image, in an order drawn for it."""
    rng = sample_rng(seed, index, "caption")
    keep = rng.random()
    fields = {field for field in ATTRIBUTE_FIELDS if rng.random() < keep}
    return caption(None, attributes, subject="S*", fields=fields, rng=rng)
