"""The data module of the embedded model's stages: people without end, in the exactly resumable order of `stream`."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from promptnet.datasets.avatars.captions import NEUTRAL_PROMPT, caption, random_fields
from promptnet.datasets.avatars.person import IDENTITY_FIELDS, Split
from promptnet.datasets.avatars.rendered import SHARD, RenderedAvatars, Role, pair_of, reference_for
from promptnet.datasets.avatars.vectors import codes_of, color_weights, exact_of, record_of
from promptnet.datasets.stream import CountedSamples, StreamBatches, sample_rng


def pixels_of(array: np.ndarray) -> torch.Tensor:
    """Return an image (S, S, 3) uint8 as (3, S, S) float32 in [-1, 1]."""
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1.0


def prompt_of(record: Mapping[str, str], fields: Collection[str], rng: random.Random) -> str:
    """Return a prompt with S* that names these attributes."""
    return caption(record, subject="S*", fields=fields, rng=rng) if fields else NEUTRAL_PROMPT


class AvatarStream(Dataset[dict[str, Any]]):
    """Sample number -> image, record and caption; see `promptnet.datasets.stream`.

    Args:
        data: rendered people.
        seed: of order and captions.
        training: False gives full captions (validation).
    """

    def __init__(self, data: RenderedAvatars, *, seed: int, training: bool = True) -> None:
        self.data, self.seed, self.training = data, seed, training

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        index = sample % len(self)
        avatar = self.data.avatar(index)
        rng = sample_rng(self.seed, sample, "caption")
        fields = random_fields(rng) if self.training else None
        record = avatar.record()
        named = list(record) if fields is None else [field for field in record if field in fields]
        reference, changes = reference_for(avatar, sample_rng(self.seed, sample, "reference"))
        return {
            "sample": sample,
            "index": index,
            "pixels": pixels_of(self.data.pixels(index)),
            "codes": codes_of(record),
            "said": codes_of({field: record[field] for field in named}),
            "exact": exact_of(avatar),
            "color_weights": color_weights(avatar),
            "caption": caption(record, fields=named, rng=rng if self.training else None),
            "record": record_of(reference),
            "prompt": prompt_of(record, changes, rng),
            "identity_words": " ".join(record[field] for field in IDENTITY_FIELDS),
        }


class AvatarPairs(Dataset[dict[str, Any]]):
    """Sample number -> reference and target of one person, and a prompt that names all in which they differ.

    Items: `sample`; `reference_index` and `target_index`, places in the rendered sets (of cached latents);
    `reference_pixels` (3, S, S) in [-1, 1]; `codes` and `exact` of the target; `record` of the reference; `prompt`
    with the placeholder S*; `described`, the same prompt with the person's description in its place.

    Args:
        references: rendered references; the targets themselves, where they are the references as published.
        targets: rendered targets, of the same stream.
        seed: of the prompts' order.
        as_published: the prompt is "a portrait of S*", and the record is the target's.
    """

    def __init__(
        self,
        references: RenderedAvatars,
        targets: RenderedAvatars,
        *,
        seed: int,
        as_published: bool = False,
    ) -> None:
        self.references, self.targets, self.seed, self.as_published = references, targets, seed, as_published

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        index = sample % len(self)
        reference, target, fields = pair_of(self.targets.seed, index, self.targets.split, self.targets.world)
        fields = frozenset[str]() if self.as_published else fields
        record, rng = target.record(), sample_rng(self.seed, sample, "prompt")
        named = fields | set(IDENTITY_FIELDS)
        return {
            "sample": sample,
            "target_index": index,
            "reference_index": index,
            "reference_pixels": pixels_of(self.references.pixels(index)),
            "codes": codes_of(record),
            "exact": exact_of(target),
            "record": record_of(target if self.as_published else reference),
            "prompt": prompt_of(record, fields, rng),
            "described": caption(record, fields=named),
        }


class AvatarDataModule(CountedSamples):
    """People for training (endless, resumable) and for validation (fixed, others).

    Batches: `pixels` (B, 3, S, S) in [-1, 1]; `codes` and `said` (B, 10), places in `FIELDS` of all fields and of those
    that the caption mentions; `exact` and `color_weights`, see `vectors`; `caption`, B strings; `record` of an image of
    the same person, and `prompt`, which names with S* in what this image differs from it; `identity_words`; `sample`
    (B,), numbers that seed everything random about the sample; `index` (B,), the image's place in the stream.

    Args:
        num_images: in the stream of training, before it begins anew; rendered as far as they are asked for.
        num_validation: of validation, other people.
        batch_size: a process and step.
        seed: of people, order and captions.
        size_px: side of the images.
        cache_dir: where rendered sets and latents are kept.
        num_workers: loader processes a rank.
        shard_size: images rendered and encoded together, when the first of them is asked for.
    """

    def __init__(
        self,
        num_images: int = 2**18,
        num_validation: int = 512,
        batch_size: int = 32,
        seed: int = 0,
        size_px: int = 64,
        cache_dir: str = "outputs/avatars",
        num_workers: int = 0,
        shard_size: int = SHARD,
    ) -> None:
        super().__init__()
        self.num_images, self.num_validation, self.batch_size = num_images, num_validation, batch_size
        self.seed, self.size_px, self.cache_dir, self.num_workers = seed, size_px, cache_dir, num_workers
        self.shard_size = shard_size

    def setup(self, stage: str | None = None) -> None:
        """Open both sets; what is missing is rendered when it is first asked for."""
        self.train: Dataset[dict[str, Any]] = AvatarStream(self.rendered("train"), seed=self.seed)
        self.validation: Dataset[dict[str, Any]] = AvatarStream(
            self.rendered("validation"), seed=self.seed, training=False
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every rank's share of the endless stream, from where the run stands."""
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = StreamBatches(self.batch_size, rank=rank, num_ranks=ranks, start=self.samples_seen)
        return DataLoader(self.train, batch_sampler=batches, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The validation set in a fixed order; every rank reads all of it, so figures do not depend on the ranks."""
        return DataLoader(self.validation, batch_size=self.batch_size, num_workers=0)

    def rendered(self, split: Split, role: Role = "target") -> RenderedAvatars:
        """Return the set of "train" or "validation", rendered or yet to render."""
        number = self.num_images if split == "train" else self.num_validation
        how: dict[str, Any] = {"seed": self.seed, "size_px": self.size_px, "shard_size": self.shard_size}
        return RenderedAvatars(self.cache_dir, split, number, role=role, **how)


class AvatarTwins(AvatarStream):
    """`AvatarStream` whose items also hold the `twin_pixels`, `twin_codes` and `twin_exact` of `rendered.twin_of`.

    Args:
        data: rendered people.
        twins: their twins.
        seed: of captions.
        training: False gives full captions.
    """

    def __init__(self, data: RenderedAvatars, twins: RenderedAvatars, *, seed: int, training: bool = True) -> None:
        super().__init__(data, seed=seed, training=training)
        self.twins = twins

    def __getitem__(self, sample: int) -> dict[str, Any]:
        index = sample % len(self)
        twin = self.twins.avatar(index)
        return {
            **super().__getitem__(sample),
            "twin_pixels": pixels_of(self.twins.pixels(index)),
            "twin_codes": codes_of(twin.record()),
            "twin_exact": exact_of(twin),
        }


class JudgeDataModule(AvatarDataModule):
    """People of every world, and their twins, for training judges; validated on unseen people of the known world."""

    def setup(self, stage: str | None = None) -> None:
        """Open both sets."""
        self.train = AvatarTwins(self._judged("judge"), self._judged("judge", "twin"), seed=self.seed)
        validation = self.rendered("validation"), self.rendered("validation", "twin")
        self.validation = AvatarTwins(*validation, seed=self.seed, training=False)

    def _judged(self, split: Split, role: Role = "target") -> RenderedAvatars:
        how: dict[str, Any] = {"seed": self.seed, "size_px": self.size_px, "shard_size": self.shard_size}
        return RenderedAvatars(self.cache_dir, split, self.num_images, role=role, world="all", **how)


class PairDataModule(AvatarDataModule):
    """`AvatarDataModule` whose items are `AvatarPairs`.

    Args:
        as_published: reference and target are one image, and the prompt is "a portrait of S*". Otherwise references are
            in any frame, and the prompt names all in which the target differs.
        people: arguments of `AvatarDataModule`.
    """

    def __init__(self, as_published: bool = False, **people: Any) -> None:
        super().__init__(**people)
        self.as_published = as_published

    def setup(self, stage: str | None = None) -> None:
        """Open both sets."""
        self.train, self.validation = self._pairs("train"), self._pairs("validation")

    def references(self, split: Split) -> RenderedAvatars:
        """Return the images that the encoder reads, of "train" or "validation"."""
        return self.rendered(split, "target" if self.as_published else "reference")

    def counts(self) -> tuple[int, int]:
        """Return how many images training has seen, and of how many people: each image shows another one."""
        seen = min(self.num_images, self.samples_seen)
        return seen, seen

    def _pairs(self, split: Split) -> AvatarPairs:
        references, targets = self.references(split), self.rendered(split)
        return AvatarPairs(references, targets, seed=self.seed, as_published=self.as_published)
