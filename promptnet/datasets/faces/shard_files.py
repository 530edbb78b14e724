"""Which parquet files make a set, and whether all of them are there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptnet.datasets.prepare.report import REPORT, SHARD_FOLDER, UNFINISHED

_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<total>\d+)\.parquet")


@dataclass(frozen=True)
class Shard:
    """One parquet file.

    Attributes:
        url: where it is, as fsspec understands it.
        num_rows: from its footer.
        version: changes when the file changes.
    """

    url: str
    num_rows: int
    version: str


def find_shards(source: str | os.PathLike[str]) -> list[Shard]:
    """The parquet files under a folder, or under an address that fsspec understands (`hf://datasets/me/faces`).

    Only their footers are read. The order is that of their names.

    Raises:
        ValueError: there are none, they hold no rows, one is damaged, or one is missing: that is known from the report
            of `promptnet prepare`, and from names such as `train-00001-of-00004.parquet`.
    """
    from fsspec.core import url_to_fs

    system, root = url_to_fs(os.fspath(source))
    root = root.rstrip("/")
    names = sorted(name for name in system.glob(f"{root}/**/*.parquet") if not _hidden(name, root))
    _check_report(system, root, names)
    _check_numbers(names)
    shards = [_read_footer(system, name) for name in names]
    if not sum(shard.num_rows for shard in shards):
        raise ValueError(f"There are no images in parquet files under '{source}': make some with `promptnet prepare`.")
    return [shard for shard in shards if shard.num_rows]


def damaged(url: str, error: Exception) -> ValueError:
    """Return the error for a shard that cannot be read."""
    said = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"The shard {url} is damaged or cut short ({said}): copy it again, or prepare the set again.")


def _hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name[len(root) :]).parts)


def _read_footer(system: Any, name: str) -> Shard:
    url = system.unstrip_protocol(name)
    try:
        with system.open(name, "rb") as file:
            num_rows = pq.ParquetFile(file).metadata.num_rows
    except pa.ArrowInvalid as error:
        raise damaged(url, error) from error
    return Shard(url, num_rows, hashlib.blake2b(f"{url} {system.ukey(name)}".encode(), digest_size=12).hexdigest())


def _check_report(system: Any, root: str, names: Sequence[str]) -> None:
    """Compare the files with what `promptnet prepare` says it wrote, where it has written these."""
    top = root.removesuffix(f"/{SHARD_FOLDER}")
    path = f"{top}/{REPORT}"
    if not system.exists(path):
        if system.exists(f"{top}/{UNFINISHED}"):
            raise ValueError(f"The set '{top}' is not finished: repeat the `promptnet prepare` that makes it.")
        return
    try:
        listed = {shard["file"]: shard["num_bytes"] for shard in json.loads(system.cat_file(path))["shards"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is not what `promptnet prepare` writes ({error}): copy it again.") from error
    found = {PurePosixPath(name).name: name for name in names}
    for file, num_bytes in listed.items():
        if file not in found:
            raise ValueError(f"The shard '{top}/{SHARD_FOLDER}/{file}' is missing: copy the set again.")
        size = system.size(found[file])
        if size != num_bytes:
            raise ValueError(
                f"The shard '{found[file]}' has {size:,} bytes where {num_bytes:,} were written: copy the set again."
            )


def _check_numbers(names: Sequence[str]) -> None:
    """Find gaps in files that say how many they are."""
    numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for match in filter(None, map(_NUMBERED.fullmatch, names)):
        numbers[match["stem"], int(match["total"])].add(int(match["number"]))
    for (stem, total), found in numbers.items():
        if missing := sorted(set(range(total)) - found):
            raise ValueError(
                f"Of the {total} shards '{stem}-*-of-*.parquet' {len(missing)} are missing, the first is number "
                f"{missing[0]}: copy the set again."
            )
