"""A prepared set as `promptnet prepare` writes it, with a few tiny images."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptnet.datasets.faces.shards import write_copy

Sizes = list[tuple[int, int]]


def png(number: int, size: tuple[int, int] = (40, 40)) -> bytes:
    """An image that no other number has, bright on its left."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2] += 100
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, numbers: range, sizes: Sizes | None = None, people: int = 4) -> None:
    """Images number by number; image k shows person k modulo `people`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = sizes or [(40, 40)]
    columns = {
        "image": [{"bytes": png(k, shapes[k % len(shapes)]), "path": f"{k}.png"} for k in numbers],
        "identity": [f"person {k % people}" for k in numbers],
        "caption": [f"a hat number {k}" for k in numbers],
        "source_hash": [f"{k:032x}" for k in numbers],
    }
    pq.write_table(pa.table(columns), path)


def count_copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the shards that are fetched from now on."""
    fetched: list[str] = []

    def noting(url: str, path: Path) -> str:
        fetched.append(url)
        return write_copy(url, path)

    monkeypatch.setattr("promptnet.datasets.faces.shards.write_copy", noting)
    return fetched


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Path]:
    """(rows of each shard, sizes) -> the folder of a prepared set."""

    def make(*shard_rows: int, sizes: Sizes | None = None, name: str = "set", first: int = 0) -> Path:
        folder = tmp_path / name
        for shard, count in enumerate(shard_rows):
            start = first + sum(shard_rows[:shard])
            write_shard(folder / f"data-{shard:05d}.parquet", range(start, start + count), sizes)
        return folder

    return make
