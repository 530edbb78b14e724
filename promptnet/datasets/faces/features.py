"""What the frozen networks make of every image, computed once: moments of the VAE, states of the image encoder.

A file's name is a hash of the images (of a shard, as served), of the network's weights, type and settings, and of how
the image is framed. Another image, network or size is another name, so what is read cannot be stale. Mirrored
images have entries of their own. Colour jitter has none: it is different each time, so the two exclude each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from promptnet.datasets.weights_hash import weights_hash

if TYPE_CHECKING:  # pyarrow is needed for sets of files alone
    from promptnet.datasets.faces.shards import ShardStore

ROWS_PER_FILE = 256
BATCH_SIZE = 16  # images encoded together
_MAX_HANDLES = 256


def network_hash(network: torch.nn.Module) -> str:
    """A hash of a network's weights, type, settings and number format."""
    config: Any = network.config
    settings = dict(config) if isinstance(config, Mapping) else config.to_dict()
    told = {key: value for key, value in settings.items() if not key.startswith("_") and key != "transformers_version"}
    dtype = next(network.parameters()).dtype
    text = f"{type(network).__name__} {dtype} {json.dumps(told, sort_keys=True, default=str)} {weights_hash(network)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows of one shard, mirrored or not: what one file of a cache holds."""

    shard: int
    start: int  # within the shard
    stop: int
    flipped: bool


class FeatureCache:
    """One kind of feature of all rows of a store.

    Args:
        root: folder of all caches.
        kind: "latents", "reference-latents" or "vision".
        framing: how an image is made into the network's input, in words; part of the name.
        network: its `network_hash`.
        store: where the images are.
        flips: whether there are entries for mirrored images.
    """

    def __init__(
        self, root: str | os.PathLike[str], kind: str, framing: str, network: str, store: ShardStore, *, flips: bool
    ) -> None:
        key = hashlib.blake2b(f"{framing} {network}".encode(), digest_size=12).hexdigest()
        self.folder, self.kind, self.store, self.flips = Path(root) / f"{kind}-{key}", kind, store, flips
        self.folder.mkdir(parents=True, exist_ok=True)
        self._handles: OrderedDict[Path, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in the order of the rows."""
        for shard, entry in enumerate(self.store.shards):
            for start in range(0, entry.num_rows, ROWS_PER_FILE):
                for flipped in (False, True) if self.flips else (False,):
                    yield Chunk(shard, start, min(start + ROWS_PER_FILE, entry.num_rows), flipped)

    def missing(self) -> list[Chunk]:
        """The chunks that are still to be computed, those among them whose file is damaged."""
        return [chunk for chunk in self.chunks() if not self._is_there(chunk)]

    def _is_there(self, chunk: Chunk) -> bool:
        """Whether a chunk's file is whole, as far as its head tells: what is cut short or overwritten is removed."""
        path = self.path(chunk)
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                if set(file.keys()) == {str(row) for row in range(chunk.start, chunk.stop)}:
                    return True
        except (SafetensorError, OSError):
            pass
        warnings.warn(f"the {self.kind} in {path} are damaged: they are computed again", stacklevel=3)
        path.unlink(missing_ok=True)
        return False

    def path(self, chunk: Chunk) -> Path:
        """Where a chunk is kept."""
        flipped = "-flipped" if chunk.flipped else ""
        return self.folder / f"{self.store.content(chunk.shard)}-{chunk.start}{flipped}.safetensors"

    def write(self, chunk: Chunk, features: Sequence[torch.Tensor]) -> None:
        """Keep the features of a chunk's rows, in float16; whole or not at all."""
        path = self.path(chunk)
        draft = path.with_name(f".{secrets.token_hex(6)}.draft")
        rows = range(chunk.start, chunk.stop)
        tensors = {
            str(row): value.to("cpu", torch.float16).contiguous() for row, value in zip(rows, features, strict=True)
        }
        for row, value in tensors.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"The {self.kind} of row {row} of {self.store.shards[chunk.shard].url} are not finite."
                )
        try:
            save_file(tensors, draft)
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def read(self, row: int, flipped: bool) -> torch.Tensor:
        """One row's feature, float16.

        Raises:
            ValueError: it has not been computed, or its file is damaged.
        """
        shard, place = self.store.locate(row)
        start = place - place % ROWS_PER_FILE
        stop = min(start + ROWS_PER_FILE, self.store.shards[shard].num_rows)
        path = self.path(Chunk(shard, start, stop, flipped))
        return self._handle(path).get_tensor(str(place))

    def _handle(self, path: Path) -> Any:
        if path not in self._handles:
            if not path.exists():
                raise ValueError(f"The {self.kind} in {path} have not been computed: fill the cache before reading it.")
            try:
                opened: Any = safe_open(path, framework="pt")
                self._handles[path] = opened.__enter__()
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"The {self.kind} in {path} are damaged ({error}): repeat the command, they are computed again."
                ) from error
            if len(self._handles) > _MAX_HANDLES:
                self._handles.popitem(last=False)
        self._handles.move_to_end(path)
        return self._handles[path]


Encode = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


def fill(
    cache: FeatureCache,
    pixels: Callable[[int, bool], torch.Tensor],
    encode: Encode,
    chunks: Sequence[Chunk],
    *,
    batch_size: int = BATCH_SIZE,
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Compute some chunks of a cache.

    Args:
        cache: where they are kept.
        pixels: (row, flipped) -> the image (3, H, W).
        encode: images (of one size or several) -> their features, in order.
        chunks: those to compute, such as this rank's share of `cache.missing()`.
        batch_size: images encoded together.
        after_batch: called `num_batches` times; what it raises ends the filling, and whole chunks stay.
    """
    for chunk in chunks:
        first = cache.store.starts[chunk.shard]
        rows = range(first + chunk.start, first + chunk.stop)
        features: list[torch.Tensor] = []
        for start in range(0, len(rows), batch_size):
            features += encode([pixels(row, chunk.flipped) for row in rows[start : start + batch_size]])
            if len(features) == len(rows):
                cache.write(chunk, features)
            after_batch()


def num_batches(chunks: Sequence[Chunk], batch_size: int = BATCH_SIZE) -> int:
    """How many batches `fill` encodes for these chunks."""
    return sum(math.ceil((chunk.stop - chunk.start) / batch_size) for chunk in chunks)
