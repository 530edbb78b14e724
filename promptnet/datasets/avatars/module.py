"""The data module of the embedded model's stages: rendered avatars in the exactly resumable order of `stream`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from promptnet.datasets.avatars.captions import caption, random_caption
from promptnet.datasets.avatars.dataset import avatar_dataset, avatar_of
from promptnet.datasets.avatars.render import FIELDS, Split
from promptnet.datasets.stream import CountedSamples, StreamBatches, dataset_index, sample_rng

if TYPE_CHECKING:
    import datasets


def pixels_of(image: Any) -> torch.Tensor:
    """A PIL image as (3, H, W) float32 in [-1, 1]."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1.0


def codes_of(record: dict[str, str]) -> torch.Tensor:
    """A record as (10,) int64: the value's place in `FIELDS`, -1 for a field the record lacks."""
    return torch.tensor([values.index(record[field]) if field in record else -1 for field, values in FIELDS.items()])


class AvatarStream(Dataset[dict[str, Any]]):
    """Sample number -> image, record and caption; see `promptnet.datasets.stream`.

    Args:
        data: what `avatar_dataset` returns.
        seed: of order and captions.
        shuffled: False keeps the data set's order and its full captions (validation).
    """

    def __init__(self, data: datasets.Dataset, *, seed: int, shuffled: bool = True) -> None:
        self.data, self.seed, self.shuffled = data, seed, shuffled

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        index = dataset_index(self.seed, sample, len(self.data)) if self.shuffled else sample % len(self.data)
        row = self.data[index]
        return {
            "sample": sample,
            "index": index,
            "pixels": pixels_of(row["image"]),
            "codes": codes_of(row),
            "caption": self._caption(row, sample),
        }

    def _caption(self, row: dict[str, Any], sample: int) -> str:
        avatar = avatar_of(row)
        if not self.shuffled:
            return caption(avatar.identity, avatar.attributes)
        return random_caption(avatar.identity, avatar.attributes, rng=sample_rng(self.seed, sample, "caption"))


class AvatarDataModule(CountedSamples):
    """Avatars for training (endless, resumable) and for validation (fixed, unseen identities).

    Batches: `pixels` (B, 3, S, S) in [-1, 1]; `codes` (B, 10), places in `FIELDS`; `caption`, B strings; `sample` (B,),
    numbers that seed everything random about the sample; `index` (B,), the image's place in the data set.

    Args:
        num_images: rendered for training.
        num_validation: rendered for validation, of other people.
        batch_size: a process and step.
        seed: of images, order and captions.
        size_px: side of the images.
        cache_dir: where the rendered sets are kept.
        num_workers: loader processes a rank.
    """

    def __init__(
        self,
        num_images: int = 24000,
        num_validation: int = 512,
        batch_size: int = 32,
        seed: int = 0,
        size_px: int = 64,
        cache_dir: str = "outputs/portraits",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.num_images, self.num_validation, self.batch_size = num_images, num_validation, batch_size
        self.seed, self.size_px, self.cache_dir, self.num_workers = seed, size_px, cache_dir, num_workers

    def prepare_data(self) -> None:
        """Render both sets once (rank 0)."""
        self.rendered("train")
        self.rendered("validation")

    def setup(self, stage: str | None = None) -> None:
        """Open the rendered sets."""
        self.train = AvatarStream(self.rendered("train"), seed=self.seed)
        self.validation = AvatarStream(self.rendered("validation"), seed=self.seed, shuffled=False)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every rank's share of the endless stream, from where the run stands."""
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = StreamBatches(self.batch_size, rank=rank, num_ranks=ranks, start=self.samples_seen)
        return DataLoader(self.train, batch_sampler=batches, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The validation set in a fixed order; every rank reads all of it, so figures do not depend on the ranks."""
        return DataLoader(self.validation, batch_size=self.batch_size, num_workers=0)

    def rendered(self, split: Split) -> datasets.Dataset:
        """The rendered set of "train" or "validation"."""
        number = self.num_images if split == "train" else self.num_validation
        return avatar_dataset(split, number, seed=self.seed, size_px=self.size_px, cache_dir=Path(self.cache_dir))
