"""Pairs of images from a prepared set: a reference and a target of one person, with a prompt.

Everything about a sample (which rows, mirrored or not, colours, prompt) is a function of (seed, sample number).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.data import Dataset

from promptnet.datasets.faces.augment import Augmentation, fitted, recoloured
from promptnet.datasets.faces.features import FeatureCache
from promptnet.datasets.faces.references import Reference
from promptnet.datasets.faces.sampler import Order, Size
from promptnet.datasets.faces.shards import ShardStore, open_row_image
from promptnet.datasets.stream import sample_rng
from promptnet.images.crop import to_pixels
from promptnet.images.load import ImageError
from promptnet.models.placeholders import find_placeholders


@dataclass(frozen=True)
class Prompts:
    """How a sample's prompt is made.

    Args:
        neutral: the prompt without a caption; it holds S*.
        template: the prompt with one: "{caption}" stands for the caption's text. A caption that mentions S* is the
            prompt as it is.
        captioned: probability that the caption is used where there is one.
    """

    neutral: str = "a photo of S*"
    template: str = "a photo of S*, {caption}"
    captioned: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.captioned <= 1:
            raise ValueError(f"captioned={self.captioned} must be a probability")
        held = [set(find_placeholders(text)) for text in (self.neutral, self.template)]
        if held != [{"S*"}, {"S*"}] or "{caption}" not in self.template:
            raise ValueError(
                f"neutral={self.neutral!r} must hold S*, a word of its own, and template={self.template!r} both S* and "
                "{caption}; neither may hold another placeholder, such as S1*"
            )

    def prompt(self, caption: str | None, draw: float) -> str:
        """The prompt of a sample with this caption and this draw from [0, 1).

        Raises:
            ValueError: the caption mentions somebody else than S*.
        """
        if not caption or draw >= self.captioned:
            return self.neutral
        mentioned = set(find_placeholders(caption))
        if mentioned - {"S*"}:
            others = ", ".join(sorted(mentioned - {"S*"}))
            raise ValueError(
                f"The caption {caption!r} mentions {others}, and there is nobody but S*: write it in other words."
            )
        return caption if mentioned else self.template.replace("{caption}", caption)


class Partners(Protocol):
    """Who may be whose reference."""

    def of(self, row: int) -> Sequence[int]:
        """The other rows of the same person, in their order."""
        ...


class SetPartners:
    """Partners among some rows of a set.

    Args:
        identities: row -> identity; rows without one (None or "") have no partner.
    """

    def __init__(self, identities: Mapping[int, str | None]) -> None:
        self.identities = dict(identities)
        self.rows_of: dict[str, list[int]] = defaultdict(list)
        for row, identity in sorted(self.identities.items()):
            if identity:
                self.rows_of[identity].append(row)

    def of(self, row: int) -> Sequence[int]:
        """See `Partners`."""
        return [other for other in self.rows_of.get(self.identities.get(row) or "", ()) if other != row]


class ShardPartners:
    """Partners within the row's shard, for sets of which only some shards are at hand."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        self._rows_of: tuple[int, dict[str, list[int]]] | None = None

    def of(self, row: int) -> Sequence[int]:
        """See `Partners`."""
        shard, place = self.store.locate(row)
        table = self.store.table(shard)
        if "identity" not in table.column_names or not (identity := table["identity"][place].as_py()):
            return []
        if self._rows_of is None or self._rows_of[0] != shard:
            rows_of: dict[str, list[int]] = defaultdict(list)
            for number, name in enumerate(table["identity"].to_pylist()):
                rows_of[name or ""].append(self.store.starts[shard] + number)
            self._rows_of = (shard, rows_of)
        return [other for other in self._rows_of[1][identity] if other != row]


@dataclass(frozen=True)
class Caches:
    """Precomputed features; None where they are computed as they are needed.

    Attributes:
        latents: of images at the targets' sizes.
        reference_latents: of the squares that the encoder reads; without aspect buckets the same.
        vision: the image encoder's states.
    """

    latents: FeatureCache | None = None
    reference_latents: FeatureCache | None = None
    vision: FeatureCache | None = None


@dataclass(frozen=True)
class Sizes:
    """The size each row's image is trained at: one for all, or those of aspect buckets."""

    square_px: int
    of_row: Mapping[int, Size] | None = None

    def of(self, row: int) -> Size:
        """Width and height."""
        return self.square if self.of_row is None else self.of_row[row]

    @property
    def square(self) -> Size:
        """What the encoder reads."""
        return self.square_px, self.square_px


@dataclass
class FacePairs(Dataset[dict[str, Any]]):
    """Sample number -> reference, target and prompt.

    Items: `sample`; `target_row`, `reference_row`; `prompt`, which mentions S*; `size_ids` (6,), SDXL's conditions:
    the target's height and width before, its crop's top and left, height and width after. Then, of reference and of
    target, `..._moments` (2 C, h, w) from the cache or `..._pixels` (3, H, W) in [-1, 1], and `reference_vision` (T, V)
    where that is cached. `target_...` is left out where it would repeat the reference's.

    Args:
        store: the images.
        order: which row comes when; None takes the rows of `fixed` in turn.
        partners: who may be whose reference.
        reference: "same-image" as published, or "same-identity".
        sizes: of the square that the encoder reads, and of the targets.
        prompts: how they are made.
        augmentation: flips and colours.
        seed: of partners and prompts.
        caches: precomputed features.
        fixed: rows of a validation set, in their order, not augmented.
    """

    store: ShardStore
    order: Order | None
    partners: Partners
    reference: Reference
    sizes: Sizes
    prompts: Prompts
    augmentation: Augmentation
    seed: int
    caches: Caches = field(default_factory=Caches)
    fixed: list[int] | None = None

    def __len__(self) -> int:
        return len(self.store) if self.fixed is None else len(self.fixed)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        target = self._target_row(sample)
        reference = self._reference_row(target, sample)
        flips = self._flips(sample, target == reference)
        size = self.sizes.of(target) if self.order is not None else self.sizes.square
        item = {
            "sample": sample,
            "target_row": target,
            "reference_row": reference,
            "prompt": self._prompt(target, sample),
            "size_ids": torch.tensor(self._size_ids(target, size)),
        }
        item |= self._reference_parts(reference, flips["reference"], sample)
        if self.reference == "same-image" and size == self.sizes.square:
            return item
        return item | self._target_parts(target, flips["target"], size, sample)

    def _target_row(self, sample: int) -> int:
        if self.order is None:
            assert self.fixed is not None
            return self.fixed[sample % len(self.fixed)]
        for shard in self.order.ahead(sample):
            self.store.prefetch(shard)
        return self.order.row(sample)

    def _reference_row(self, target: int, sample: int) -> int:
        others = self.partners.of(target) if self.reference == "same-identity" else []
        return sample_rng(self.seed, sample, "partner").choice(others) if others else target

    def _flips(self, sample: int, same: bool) -> dict[str, bool]:
        if self.order is None:
            return {"target": False, "reference": False}
        target = self.augmentation.flipped(sample, "target")
        return {"target": target, "reference": target if same else self.augmentation.flipped(sample, "reference")}

    def _prompt(self, row: int, sample: int) -> str:
        draw = sample_rng(self.seed, sample, "prompt").random()
        caption = self.store.row(row, ["caption"])["caption"] if self.prompts.captioned else None
        return self._named_prompt(row, caption, draw)

    def _named_prompt(self, row: int, caption: str | None, draw: float) -> str:
        try:
            return self.prompts.prompt(caption, draw)
        except ValueError as error:
            raise ValueError(f"{self.store.name(row)}: {error}") from error

    def captioned_prompts(self) -> Iterator[tuple[int, str]]:
        """Yield the prompts that captions make, each with its row, where all rows are at hand.

        Raises:
            ValueError: captions are asked for and there is not one, or one mentions somebody else than S*.
        """
        rows = self.fixed if isinstance(self.fixed, list) else getattr(self.order, "rows", None)
        if not self.prompts.captioned or rows is None:
            return
        captions = self.store.column("caption")
        if self.fixed is None and not any(captions[row] for row in rows):
            raise ValueError(
                f"captioned={self.prompts.captioned}, but not one image in '{self.store.source}' has a caption: set "
                "it to 0, or prepare the set with --caption-column."
            )
        for row in rows:
            if captions[row]:
                yield row, self._named_prompt(row, captions[row], 0.0)

    def _latents_cache(self, size: Size) -> FeatureCache | None:
        """That of the squares the encoder reads, or of the targets' sizes; without buckets they are one."""
        return self.caches.reference_latents if size == self.sizes.square else self.caches.latents

    def _reference_parts(self, row: int, flipped: bool, sample: int) -> dict[str, torch.Tensor]:
        parts, latents = {}, self._latents_cache(self.sizes.square)
        if latents is not None:
            parts["reference_moments"] = latents.read(row, flipped)
        if self.caches.vision is not None:
            parts["reference_vision"] = self.caches.vision.read(row, flipped)
        if len(parts) < 2:
            parts["reference_pixels"] = to_pixels(self.image(row, flipped, self.sizes.square, sample))
        return parts

    def _target_parts(self, row: int, flipped: bool, size: Size, sample: int) -> dict[str, torch.Tensor]:
        latents = self._latents_cache(size)
        if latents is not None:
            return {"target_moments": latents.read(row, flipped)}
        return {"target_pixels": to_pixels(self.image(row, flipped, size, sample))}

    def reference_pixels(self, row: int, flipped: bool) -> torch.Tensor:
        """A row's image as the encoder reads it, (3, S, S) in [-1, 1], in its own colours: what is cached."""
        return to_pixels(self.image(row, flipped, self.sizes.square, None))

    def target_pixels(self, row: int, flipped: bool) -> torch.Tensor:
        """A row's image at the size it is trained at, (3, H, W) in [-1, 1], in its own colours."""
        return to_pixels(self.image(row, flipped, self.sizes.of(row), None))

    def image(self, row: int, flipped: bool, size: Size, sample: int | None) -> Image.Image:
        """A row's image, framed, mirrored and coloured."""
        image, _ = fitted(self._opened(row), *size)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if sample is None or self.order is None:
            return image
        return recoloured(image, self.augmentation.colours(sample))

    def _opened(self, row: int) -> Image.Image:
        """A row's image; from a new copy of its shard, where the old one has been damaged since it was made."""
        try:
            return open_row_image(self.store.row(row, ["image"])["image"])
        except ImageError:
            self.store.renew(self.store.locate(row)[0])
        try:
            return open_row_image(self.store.row(row, ["image"])["image"])
        except ImageError as error:
            raise ImageError(f"The image in {self.store.name(row)} cannot be used ({error}).") from error

    def _size_ids(self, row: int, size: Size) -> list[int]:
        """Height and width before, crop's top and left, height and width after (SDXL, arXiv 2307.01952, 2.2)."""
        known = self.store.row(row, ["width_px", "height_px"])
        width_px, height_px = known["width_px"] or size[0], known["height_px"] or size[1]
        scale = max(size[0] / width_px, size[1] / height_px)
        top, left = round((height_px * scale - size[1]) / 2), round((width_px * scale - size[0]) / 2)
        return [height_px, width_px, top, left, size[1], size[0]]
