"""The images of a table, each a file named after all that decides it: what is there is never made again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.io.atomic import write_whole


def key_of(record: Mapping[str, Any]) -> str:
    """Return a name for what a record decides."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=list).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Job:
    """The images of one row and unit, which are made together.

    Args:
        row: of the table.
        unit: decides the shard.
        names: of the images in the store, in order.
    """

    row: str
    unit: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class ImageStore:
    """A folder of images."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the path of an image."""
        return self.folder / f"{name}.png"

    def missing(self, job: Job) -> list[int]:
        """Return the places of a job's images that are not there."""
        return [place for place, name in enumerate(job.names) if not self.path(name).is_file()]

    def put(self, name: str, image: Image.Image) -> None:
        """Store an image."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(name), image.save, public=True)

    def get(self, job: Job) -> list[Image.Image]:
        """Return a job's images."""
        return [self._opened(name) for name in job.names]

    def _opened(self, name: str) -> Image.Image:
        with Image.open(self.path(name)) as image:
            return image.convert("RGB")
