"""Pictures drawn so far, one strip a person and row, so that a run that was interrupted goes on where it stopped.

A strip's name is a hash of all that decides its pictures (weights, steps, the row's knobs, the person's tasks): rows
with the same settings share it, and a changed setting never finds an old picture.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from promptnet.io.files import write_whole


class Unit(Protocol):
    """What is drawn together and kept as one strip: a person with asks, a group of pictures to edit."""

    @property
    def index(self) -> int:
        """Its place among its kind."""
        ...

    @property
    def asks(self) -> Sequence[Any]:
        """What is asked, a picture each."""
        ...


class Drawing(Protocol):
    """How it is drawn: a row of a comparison."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def source(self) -> str:
        """Where pictures come from: "subject" where an encoder of its own is needed."""
        ...

    @property
    def encoder(self) -> str:
        """Which."""
        ...

    @property
    def knobs(self) -> Mapping[str, Any]:
        """Of the drawing: "width" and "height", where pictures have another size than the gallery's."""
        ...

    def record(self) -> dict[str, Any]:
        """All that decides the pictures."""
        ...


@dataclass(frozen=True)
class Gallery:
    """A folder of strips.

    Args:
        folder: where; made if its parent exists.
        weights: hashes of the base model, as "base", and of the encoders.
        steps: denoising steps.
        size_px: side of a picture, where a row's knobs do not say `width` and `height`.
    """

    folder: Path
    weights: Mapping[str, str]
    steps: int
    size_px: int

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def path(self, person: Unit, row: Drawing) -> Path:
        """Where the strip of this person and row lies, or will."""
        weights = [self.weights["base"], self.weights[row.encoder] if row.source == "subject" else None]
        content: list[Any] = [weights, self.steps, self.size_px, row.record(), repr(person)]
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{name}.png"

    def has(self, person: Unit, row: Drawing) -> bool:
        """Whether it is drawn."""
        return self.path(person, row).is_file()

    def size(self, row: Drawing) -> tuple[int, int]:
        """Width and height of a row's pictures, in pixels."""
        return int(row.knobs.get("width", self.size_px)), int(row.knobs.get("height", self.size_px))

    def put(self, person: Unit, row: Drawing, pictures: Sequence[Image.Image]) -> None:
        """Keep a person's pictures.

        Raises:
            ValueError: not one picture of the row's size for every ask.
        """
        size = width, height = self.size(row)
        if len(pictures) != len(person.asks) or any(picture.size != size for picture in pictures):
            sizes = sorted({picture.size for picture in pictures})
            raise ValueError(
                f"row {row.name!r} drew {len(pictures)} pictures of {sizes}, not {len(person.asks)} of {size}"
            )
        strip = Image.new("RGB", (width * len(pictures), height))
        for place, picture in enumerate(pictures):
            strip.paste(picture.convert("RGB"), (place * width, 0))
        write_whole(self.path(person, row), strip.save)

    def get(self, person: Unit, row: Drawing) -> list[Image.Image]:
        """A person's pictures, ask by ask."""
        with Image.open(self.path(person, row)) as strip:
            whole = strip.convert("RGB")
        width, height = self.size(row)
        return [whole.crop((place * width, 0, (place + 1) * width, height)) for place in range(len(person.asks))]
