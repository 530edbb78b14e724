"""Parquet shards, on this machine or not, as rows by number.

Parquet is for keeping and sending, not for reading rows in any order, so a shard is copied once into an uncompressed
Arrow file that is mapped into memory. A set that fits on the disk is copied whole; of a larger one the store keeps
`max_shards`, those used last, and fetches the others again when their turn comes. Loader processes and ranks of one
machine share the copies.

A copy is named after the shard's version, as its file system tells it, and after a hash of the images in it. What is
computed from images is filed under that hash (promptnet.datasets.faces.features), which comes from the very bytes
that are served. An empty file of the copy's name stays where the copy had to make room, so that a hash is learnt once.
While it is copied, every image is decoded once: its size is noted (columns `width_px`, `height_px`), and one that
cannot be
read stops the run at its start and not after a day.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from promptnet.datasets.faces.shard_files import Shard, damaged, find_shards
from promptnet.images.load import ImageError, open_image

SIZE_COLUMNS = ("width_px", "height_px")
_LEARNT = ".content"
_COPIED_ROWS = 64  # rows that are in memory at once while a shard is copied
_MAX_MAPPED = 1024  # shards a process has mapped at one time; systems allow some 65,000 maps in all


def image_bytes(value: Any) -> bytes:
    """An image column's value: bytes, or the record of bytes and path that Hugging Face data sets keep."""
    data = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError("The column 'image' does not hold images' bytes: make the set with `promptnet prepare`.")
    return data


def open_row_image(value: Any) -> Image.Image:
    """The image of a row, decoded by the one guarded function."""
    return open_image(BytesIO(image_bytes(value)), min_size_px=1)


_STORES: WeakSet[ShardStore] = WeakSet()


def _finish_fetching() -> None:
    """Before a fork: a child shares the lock of a shard on its way, and would wait for it and the thread for good."""
    for store in list(_STORES):
        wait(store._coming.values())


def _forget_fetching() -> None:
    for store in list(_STORES):
        store._forget_handles()


os.register_at_fork(before=_finish_fetching, after_in_child=_forget_fetching)


class ShardStore:
    """Rows 0 to len - 1 of all shards, in the shards' order.

    Args:
        source: see `find_shards`.
        copies_dir: folder of the Arrow copies; created.
        max_shards: how many copies are kept; None keeps all.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        copies_dir: str | os.PathLike[str],
        *,
        max_shards: int | None = None,
    ) -> None:
        if max_shards is not None and max_shards < 1:
            raise ValueError(f"max_shards={max_shards} must be at least 1")
        self.source, self.max_shards = os.fspath(source), max_shards
        self.shards = find_shards(source)
        self.starts = [0, *accumulate(shard.num_rows for shard in self.shards)]
        self.copies_dir = Path(copies_dir)
        self.copies_dir.mkdir(parents=True, exist_ok=True)
        self._copies = {path.name.partition("-")[0]: path for path in self.copies_dir.glob("*.arrow")}
        self._contents = dict(path.stem.split("-") for path in self.copies_dir.glob(f"*{_LEARNT}"))
        self._forget_handles()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_open", "_fetcher", "_coming")}
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_handles()

    def _forget_handles(self) -> None:
        """Maps and threads do not travel to another process."""
        _STORES.add(self)
        self._open: dict[int, pa.Table] = {}
        self._fetcher: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Any]] = {}

    def locate(self, row: int) -> tuple[int, int]:
        """The shard that holds a row, and the row's number in it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard = bisect_right(self.starts, row) - 1
        return shard, row - self.starts[shard]

    def name(self, row: int) -> str:
        """A row's name for messages: its number in its shard, the shard, and the image it was made of."""
        shard, place = self.locate(row)
        source = self.row(row, ["source"])["source"]
        return f"row {place} of {self.shards[shard].url}" + (f" (from '{source}')" if source else "")

    def row(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one row; those the set lacks are None."""
        shard, place = self.locate(row)
        table = self.table(shard)
        found = set(table.column_names)
        return {name: table[name][place].as_py() if name in found else None for name in columns}

    def column(self, name: str) -> list[Any]:
        """A whole column over all shards; None in rows of shards that lack it."""
        values: list[Any] = []
        for index, shard in enumerate(self.shards):
            table = self.table(index)
            values += table[name].to_pylist() if name in table.column_names else [None] * shard.num_rows
        return values

    def content(self, shard: int) -> str:
        """The hash of a shard's images, in their order."""
        version = self.shards[shard].version
        if version not in self._contents:
            note = next(self.copies_dir.glob(f"{version}-*{_LEARNT}"), None)  # of another process
            named = note or self._copies.get(version) or self._ensure_copy(self.shards[shard])
            self._contents[version] = named.stem.partition("-")[2]
        return self._contents[version]

    def table(self, shard: int) -> pa.Table:
        """A shard's rows, mapped into memory; fetched first where there is no copy."""
        if shard in self._open:
            self._open[shard] = self._open.pop(shard)  # used last
        else:
            coming = self._coming.pop(shard, None)
            if coming is not None:
                coming.exception()  # what failed in the background is tried again here, where it can be reported
            self._open[shard] = self._map(self.shards[shard])
            while len(self._open) > (self.max_shards or _MAX_MAPPED):
                del self._open[next(iter(self._open))]
        return self._open[shard]

    def prefetch(self, shard: int) -> None:
        """Fetch a shard in the background, if it is not here."""
        if shard in self._open or shard in self._coming:
            return
        self._fetcher = self._fetcher or ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._coming[shard] = self._fetcher.submit(self._ensure_copy, self.shards[shard])

    def _map(self, shard: Shard) -> pa.Table:
        for is_new in (False, True):
            while True:
                path = self._ensure_copy(shard)
                try:
                    table = _mapped(path)
                    break
                except FileNotFoundError:  # another process made room just now
                    continue
            if table is not None and table.num_rows == shard.num_rows:
                return table
            if not is_new:
                self._remove_copy(shard, path)
        raise damaged(shard.url, ValueError(f"its footer tells of {shard.num_rows} rows, and it has others"))

    def renew(self, shard: int) -> None:
        """Have a shard copied again: something in its copy could not be read."""
        self._open.pop(shard, None)
        if (path := self._find_copy(self.shards[shard])) is not None:
            self._remove_copy(self.shards[shard], path)

    def _remove_copy(self, shard: Shard, path: Path) -> None:
        warnings.warn(f"the copy {path} is damaged: {shard.url} is copied again", stacklevel=3)
        path.unlink(missing_ok=True)
        self._copies.pop(shard.version, None)

    def _ensure_copy(self, shard: Shard) -> Path:
        """The shard's copy, made if there is none. Processes that want the same one wait for the first."""
        found = self._find_copy(shard)
        if found is None:
            with _locked(self.copies_dir / f".{shard.version}.lock"):
                found = self._find_copy(shard) or self._copy(shard)
            self._make_room(found)
        return found

    def _find_copy(self, shard: Shard) -> Path | None:
        known = self._copies.get(shard.version)
        if known is not None and known.exists():
            return known
        found = next(self.copies_dir.glob(f"{shard.version}-*.arrow"), None)
        if found is not None:
            self._copies[shard.version] = found
        return found

    def _copy(self, shard: Shard) -> Path:
        draft = self.copies_dir / f".{secrets.token_hex(6)}.draft"
        try:
            content = write_copy(shard.url, draft)
            final = self.copies_dir / f"{shard.version}-{content}.arrow"
            final.with_suffix(_LEARNT).touch()
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)
        self._copies[shard.version] = final
        return final

    def _make_room(self, newest: Path) -> None:
        """Remove the copies that were used longest ago. Who has one mapped keeps it until letting go."""
        if self.max_shards is None:
            return
        ages = []
        for path in self.copies_dir.glob("*.arrow"):
            try:
                ages.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue
        for _, path in sorted(ages)[: -self.max_shards]:
            if path != newest:
                path.unlink(missing_ok=True)


def _mapped(path: Path) -> pa.Table | None:
    """A copy's rows, mapped into memory; None where it is damaged."""
    os.utime(path)
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        return None


def write_copy(url: str, path: Path) -> str:
    """Copy one parquet file into an uncompressed Arrow file, flushed to the disk; the hash of its images.

    Raises:
        ValueError: it has no images, or one that cannot be read; the message names the row. Or it is damaged.
    """
    try:
        return _written_copy(url, path)
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk or the network, which says what it is
            raise
        raise damaged(url, error) from error


def _written_copy(url: str, path: Path) -> str:
    import fsspec

    digest = hashlib.blake2b(digest_size=16)
    opened: Any = fsspec.open(url, "rb")
    with opened as source:
        parquet = pq.ParquetFile(source)
        if "image" not in parquet.schema_arrow.names:
            raise ValueError(f"{url} has no column 'image': make the set with `promptnet prepare`.")
        schema = parquet.schema_arrow
        for name in SIZE_COLUMNS:
            schema = schema.append(pa.field(name, pa.int32()))
        with open(path, "wb") as file, pa.ipc.new_file(file, schema) as writer, ThreadPoolExecutor() as pool:
            for number, batch in enumerate(parquet.iter_batches(_COPIED_ROWS, use_threads=False)):
                images = [image_bytes(value) for value in batch.column("image").to_pylist()]
                for image in images:
                    digest.update(len(image).to_bytes(8, "little") + image)
                named = [(f"row {number * _COPIED_ROWS + i} of {url}", data) for i, data in enumerate(images)]
                sizes = list(pool.map(_size, named))
                columns = [pa.array([size[axis] for size in sizes], pa.int32()) for axis in (0, 1)]
                writer.write_batch(pa.record_batch([*batch.columns, *columns], schema=schema))
        _sync(path)
    return digest.hexdigest()


def _size(named: tuple[str, bytes]) -> tuple[int, int]:
    name, image = named
    try:
        return open_row_image(image).size
    except ImageError as error:
        raise ImageError(f"The image in {name} cannot be used ({error}). Prepare the set again.") from error


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock dies with its process, so it is never left behind."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
