"""The data module for sets of faces that `promptnet prepare` made."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from promptnet.datasets.faces.augment import Augmentation
from promptnet.datasets.faces.features import FeatureCache
from promptnet.datasets.faces.pairs import Caches, FacePairs, Partners, Prompts, SetPartners, ShardPartners, Sizes
from promptnet.datasets.faces.references import GivenReference, Reference, checked_reference
from promptnet.datasets.faces.sampler import BucketOrder, FullOrder, Order, Size, WindowOrder, nearest_size
from promptnet.datasets.faces.shards import ShardStore
from promptnet.datasets.stream import CountedSamples

_NOBODY = "\0row "  # no name has a null byte in it
Feature = Literal["latents", "vision"]
Pixels = Callable[[int, bool], torch.Tensor]


class FaceDataModule(CountedSamples):
    """Pairs from a prepared set, endless and exactly resumable; see `FacePairs` for what a batch holds.

    Order, partners, flips, colours and prompts are functions of (seed, sample number), so neither an interruption nor
    the number of processes changes what is seen. (Aspect buckets are cut into batches, so there `batch_size` is part of
    the order: a run keeps it.)

    Args:
        data_dir: the prepared set: a folder with parquet shards, or an address that fsspec understands
            (`hf://datasets/me/faces`).
        cache_dir: for copies of the shards and precomputed features, on a fast local disk.
        validation_dir: another prepared set to validate on. Without one, `num_validation` images are held out, with
            all others of the people in them.
        num_validation: images to validate on; 0 for none. People are held out whole; where more images would be
            held out than trained on, that is refused.
        resolution_px: side of the square that is trained on, and that the encoder reads.
        sizes_px: aspect buckets for targets, (width, height) each; every image goes into the one of its shape. None
            trains on squares alone.
        batch_size: a process and step.
        reference: "same-image" as published, or another image of the "same-identity" where there is one.
        captioned: probability that the set's caption is used (column `caption`).
        neutral_prompt: the prompt without a caption.
        caption_prompt: the prompt with one.
        flip: probability that an image is mirrored.
        colour_jitter: strength of changes in colour; excludes precomputed features.
        features: what is computed once and kept: "latents", "vision" or both.
        window_shards: None copies the whole set to `cache_dir`. A number streams: so many shards are mixed at a time,
            the next ones are fetched meanwhile, and no more than both are kept.
        num_workers: loader processes a rank.
        seed: of everything random.
    """

    def __init__(
        self,
        data_dir: str,
        cache_dir: str = "outputs/faces",
        validation_dir: str | None = None,
        num_validation: int = 512,
        resolution_px: int = 512,
        sizes_px: list[tuple[int, int]] | None = None,
        batch_size: int = 8,
        reference: GivenReference = "same-identity",
        captioned: float = 0.0,
        neutral_prompt: str = "a photo of S*",
        caption_prompt: str = "a photo of S*, {caption}",
        flip: float = 0.5,
        colour_jitter: float = 0.0,
        features: list[Feature] | None = None,
        window_shards: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.features: list[Feature] = list(features or [])
        _check(self.features, colour_jitter, sizes_px, window_shards, validation_dir, num_validation)
        self.data_dir, self.cache_dir, self.validation_dir = data_dir, Path(cache_dir), validation_dir
        self.num_validation, self.resolution_px, self.batch_size = num_validation, resolution_px, batch_size
        self.sizes_px = [(int(width), int(height)) for width, height in sizes_px or []]
        self.reference: Reference = checked_reference(reference)
        self.prompts = Prompts(neutral_prompt, caption_prompt, captioned)
        self.augmentation = Augmentation(flip, colour_jitter, seed)
        self.window_shards, self.num_workers, self.seed = window_shards, num_workers, seed

    def prepare_data(self) -> None:
        """Copy the shards that are to be kept, once a machine."""
        if self.window_shards is None:
            _copy_all(self._store(self.data_dir, None))
        if self.validation_dir is not None:
            _copy_all(self._store(self.validation_dir, None))

    def setup(self, stage: str | None = None) -> None:
        """Open the sets and lay down who is trained on and who is validated on."""
        if self.window_shards is not None:
            self._set_up_stream(self.window_shards)
        else:
            self._set_up_whole()
        for pairs in (self.train, self.validation):
            for _ in pairs.captioned_prompts() if pairs is not None else ():
                pass  # each is looked at: better now than after a night

    def _store(self, source: str, max_shards: int | None) -> ShardStore:
        # A folder of its own: what one store removes, another must not be counting on.
        place = hashlib.blake2b(source.encode(), digest_size=6).hexdigest()
        return ShardStore(source, self.cache_dir / "shards" / place, max_shards=max_shards)

    def _set_up_stream(self, window: int) -> None:
        store = self._store(self.data_dir, 2 * window)
        order = WindowOrder([shard.num_rows for shard in store.shards], window, self.batch_size, seed=self.seed)
        self.train = self._pairs(store, order, ShardPartners(store), Sizes(self.resolution_px))
        self.validation = self._other_set()

    def _set_up_whole(self) -> None:
        store = self._store(self.data_dir, None)
        people = _people(store)
        held_out = [] if self.validation_dir is not None else _held_out(people, self.num_validation)
        names = set(held_out)
        rows = [row for row, person in enumerate(people) if person not in names]
        num_held_out = len(people) - len(rows)
        if num_held_out > len(rows):
            raise ValueError(
                f"num_validation={self.num_validation} holds out {num_held_out} of the {len(people)} images in "
                f"'{self.data_dir}' with all of {len(names)} people, and leaves {len(rows)} to train on: lower it, or "
                "give a validation_dir."
            )
        sizes = self._sizes(store)
        partners = SetPartners({row: people[row] for row in rows if not people[row].startswith(_NOBODY)})
        self._say_partners(partners, rows)
        self.train = self._pairs(store, self._order(rows, sizes), partners, sizes)
        rows_of = _rows_of(people)
        fixed = [row for person in held_out for row in rows_of[person]][: self.num_validation]
        self.validation = self._other_set() if self.validation_dir is not None else self._fixed(store, people, fixed)

    def _say_partners(self, partners: SetPartners, rows: list[int]) -> None:
        """Warn where another image of the same person is asked for and nobody has one."""
        num_people = len(partners.rows_of)
        rank_zero_info(f"training on {len(rows)} images, of {num_people or 'no'} people known by name")
        if self.reference == "same-identity" and all(len(found) < 2 for found in partners.rows_of.values()):
            rank_zero_warn(
                f"reference=same-identity, but nobody in '{self.data_dir}' has two images: each is its own "
                "reference, as with same-image. Say who is who when the set is prepared (--identity)."
            )

    def _sizes(self, store: ShardStore) -> Sizes:
        if not self.sizes_px:
            return Sizes(self.resolution_px)
        shapes = zip(store.column("width_px"), store.column("height_px"), strict=True)
        return Sizes(self.resolution_px, {row: nearest_size(*shape, self.sizes_px) for row, shape in enumerate(shapes)})

    def _order(self, rows: list[int], sizes: Sizes) -> Order:
        if sizes.of_row is None:
            return FullOrder(rows, self.batch_size, seed=self.seed)
        buckets: dict[Size, list[int]] = defaultdict(list)
        for row in rows:
            buckets[sizes.of(row)].append(row)
        return BucketOrder(buckets, self.batch_size, seed=self.seed)

    def _pairs(self, store: ShardStore, order: Order | None, partners: Partners, sizes: Sizes) -> FacePairs:
        return FacePairs(store, order, partners, self.reference, sizes, self.prompts, self.augmentation, self.seed)

    def _fixed(self, store: ShardStore, people: list[str], rows: list[int]) -> FacePairs | None:
        if not rows:
            return None
        pairs = self._pairs(
            store, None, SetPartners({row: people[row] for row in sorted(rows)}), Sizes(self.resolution_px)
        )
        pairs.fixed = rows
        return pairs

    def _other_set(self) -> FacePairs | None:
        if self.validation_dir is None:
            return None
        store = self._store(self.validation_dir, None)
        people = _people(store)
        return self._fixed(store, people, list(range(min(self.num_validation, len(people)))))

    def caches(self, networks: dict[Feature, str]) -> list[tuple[FeatureCache, Pixels]]:
        """Have the sets read precomputed features; the caches to be filled, and how a (row, flipped) looks in each.

        Args:
            networks: the `network_hash` of the VAE ("latents") and of the image encoder ("vision").
        """
        found: dict[tuple[Path, str], tuple[FeatureCache, Pixels]] = {}
        for pairs in (self.train, self.validation):
            if pairs is None:
                continue
            pairs.caches = self._caches_of(pairs, networks)
            for cache in (pairs.caches.latents, pairs.caches.reference_latents, pairs.caches.vision):
                if cache is not None:
                    pixels = pairs.target_pixels if cache.kind == "bucket-latents" else pairs.reference_pixels
                    found.setdefault((cache.folder, pairs.store.source), (cache, pixels))
        return list(found.values())

    def _caches_of(self, pairs: FacePairs, networks: dict[Feature, str]) -> Caches:
        square, flips = f"square {self.resolution_px}", self.augmentation.flip > 0
        root = self.cache_dir / "features"

        def cache(kind: str, framing: str, network: Feature) -> FeatureCache:
            return FeatureCache(root, kind, framing, networks[network], pairs.store, flips=flips)

        latents = cache("latents", square, "latents") if "latents" in self.features else None
        vision = cache("vision", square, "vision") if "vision" in self.features else None
        if latents is None or pairs.sizes.of_row is None:
            return Caches(latents, latents, vision)
        return Caches(cache("bucket-latents", f"buckets {sorted(self.sizes_px)}", "latents"), latents, vision)

    def counts(self) -> tuple[int, int | None]:
        """Return how many images are trained on, and of how many people; None where the data does not tell."""
        partners = self.train.partners
        people = len(partners.rows_of) if isinstance(partners, SetPartners) else 0
        return len(getattr(self.train.order, "rows", self.train.store)), people or None

    def facts(self) -> dict[str, str]:
        """Return what a run on this data may not change on its way: the images, and which of them are trained on."""
        store, order = self.train.store, self.train.order
        if isinstance(order, WindowOrder):  # most of it is not at hand
            known: list[Any] = [(Path(shard.url).name, shard.num_rows) for shard in store.shards]
            return {"shards": _digest(known)}
        assert isinstance(order, FullOrder | BucketOrder)
        images = [store.content(number) for number in range(len(store.shards))]
        texts = [store.column(name) for name in ("identity", "caption")]
        return {"images": _digest([images, texts]), "images trained on": _digest(list(order.rows))}

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every rank's share of the endless stream, from where the run stands."""
        trainer = self.trainer
        rank, num_ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        assert self.train.order is not None
        batches = self.train.order.batches(rank=rank, num_ranks=num_ranks, start=self.samples_seen)
        return DataLoader(
            self.train,
            batch_sampler=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """The validation set in a fixed order; every rank reads all of it, so figures do not depend on the ranks."""
        if self.validation is None:
            return []
        return DataLoader(self.validation, batch_size=self.batch_size, num_workers=0)


def _check(
    features: list[Feature],
    colour_jitter: float,
    sizes_px: list[tuple[int, int]] | None,
    window_shards: int | None,
    validation_dir: str | None,
    num_validation: int,
) -> None:
    """Refuse settings that exclude each other."""
    unknown = set(features) - {"latents", "vision"}
    if unknown:
        raise ValueError(f"features={features} can hold 'latents' and 'vision', not {sorted(unknown)}")
    if features and colour_jitter:
        raise ValueError(
            f"colour_jitter={colour_jitter} changes every image every time, so nothing can be precomputed: set it to "
            f"0, or leave out features={features}. (Flips go well with both.)"
        )
    if window_shards is not None and sizes_px:
        raise ValueError("sizes_px needs the whole set at hand: leave out window_shards, or train on squares.")
    if window_shards is not None and num_validation and validation_dir is None:
        raise ValueError("A stream cannot hold people out: give a validation_dir, or set num_validation to 0.")


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _copy_all(store: ShardStore) -> None:
    for shard in range(len(store.shards)):
        store.table(shard)


def _people(store: ShardStore) -> list[str]:
    """Who is in each row: the identity, or for rows without one the row itself."""
    return [name or f"{_NOBODY}{row}" for row, name in enumerate(store.column("identity"))]


def _rows_of(people: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, person in enumerate(people):
        rows[person].append(row)
    return rows


def _held_out(people: list[str], num_images: int) -> list[str]:
    """People enough for so many images, chosen by a hash of their names: growing the set moves few."""
    rows, chosen, count = _rows_of(people), [], 0
    for person in sorted(rows, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest()):
        if count >= num_images:
            break
        chosen.append(person)
        count += len(rows[person])
    return chosen
