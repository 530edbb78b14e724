"""Procedural portraits as a folder of files: one sub-folder a person, beside each picture its caption.

That is how people's own photographs lie on a disk, so the embedded model's encoder can be trained by the very steps
that a real one takes, from `promptnet prepare` on.
"""

from __future__ import annotations

from pathlib import Path

from promptnet.datasets.avatars.captions import caption
from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, Attributes, Split, sample_portrait
from promptnet.datasets.stream import sample_rng


def write_portraits(
    folder: str | Path, split: Split, num_pictures: int, *, seed: int = 0, size_px: int = 64
) -> list[Path]:
    """Write portrait i, `sample_portrait(seed, i, split)`, to `<person>/<i>.png` and its caption to `<person>/<i>.txt`.

    A caption mentions some of the portrait's attributes and S*, for example "a sad portrait of S*, wearing sunglasses".

    Args:
        folder: to write to; made, with those above it.
        split: "train", "validation" or "test"; the splits share no identity.
        num_pictures: how many.
        seed: of portraits and captions.
        size_px: side of the pictures.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: `num_pictures` is below 1.
    """
    if num_pictures < 1:
        raise ValueError(f"num_pictures={num_pictures} must be at least 1")
    return [_write(Path(folder), split, index, seed, size_px) for index in range(num_pictures)]


def _write(folder: Path, split: Split, index: int, seed: int, size_px: int) -> Path:
    portrait = sample_portrait(seed, index, split)
    place = folder / "-".join(portrait.identity.record().values()) / f"{index:06d}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    portrait.render(size_px).save(place)
    place.with_suffix(".txt").write_text(_caption(portrait.attributes, seed, index) + "\n", "utf-8")
    return place


def _caption(attributes: Attributes, seed: int, index: int) -> str:
    """Each attribute kept with a probability drawn for this picture, in an order drawn for it."""
    rng = sample_rng(seed, index, "caption")
    keep = rng.random()
    fields = {field for field in ATTRIBUTE_FIELDS if rng.random() < keep}
    return caption(None, attributes, subject="S*", fields=fields, rng=rng)
