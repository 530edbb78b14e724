"""Images drawn so far, one strip a person and row, so that a run that was interrupted goes on where it stopped.

A strip's name is a hash of all that decides its images (weights, steps, the row's parameters, the person's tasks): rows
with the same settings share it, and a changed setting never finds an old image.
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
    """What is drawn together and kept as one strip: a person with asks, a group of images to edit."""

    @property
    def index(self) -> int:
        """Its place among its kind."""
        ...

    @property
    def eval_prompts(self) -> Sequence[Any]:
        """What is asked, an image each."""
        ...


class Method(Protocol):
    """How it is drawn: a row of a comparison."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def source(self) -> str:
        """Where images come from: "subject" where an encoder of its own is needed."""
        ...

    @property
    def encoder(self) -> str:
        """Which."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the drawing: "width" and "height", where images have another size than the image cache's."""
        ...

    def record(self) -> dict[str, Any]:
        """All that decides the images."""
        ...


@dataclass(frozen=True)
class ImageCache:
    """A folder of strips.

    Args:
        folder: where; made if its parent exists.
        weights: hashes of the base model, as "base", and of the encoders.
        steps: denoising steps.
        size_px: side of an image, where a row's parameters do not say `width` and `height`.
    """

    folder: Path
    weights: Mapping[str, str]
    steps: int
    size_px: int

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def path(self, person: Unit, method: Method) -> Path:
        """Where the strip of this person and row lies, or will."""
        weights = [self.weights["base"], self.weights[method.encoder] if method.source == "subject" else None]
        content: list[Any] = [weights, self.steps, self.size_px, method.record(), repr(person)]
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{name}.png"

    def has(self, person: Unit, method: Method) -> bool:
        """Whether it is drawn."""
        return self.path(person, method).is_file()

    def size(self, method: Method) -> tuple[int, int]:
        """Width and height of a row's images, in pixels."""
        return int(method.config.get("width", self.size_px)), int(method.config.get("height", self.size_px))

    def put(self, person: Unit, method: Method, images: Sequence[Image.Image]) -> None:
        """Keep a person's images.

        Raises:
            ValueError: not one image of the row's size for every ask.
        """
        size = width, height = self.size(method)
        if len(images) != len(person.eval_prompts) or any(image.size != size for image in images):
            sizes = sorted({image.size for image in images})
            raise ValueError(
                f"row {method.name!r} drew {len(images)} images of {sizes}, not {len(person.eval_prompts)} of {size}"
            )
        strip = Image.new("RGB", (width * len(images), height))
        for place, image in enumerate(images):
            strip.paste(image.convert("RGB"), (place * width, 0))
        write_whole(self.path(person, method), strip.save)

    def get(self, person: Unit, method: Method) -> list[Image.Image]:
        """A person's images, ask by ask."""
        with Image.open(self.path(person, method)) as strip:
            whole = strip.convert("RGB")
        width, height = self.size(method)
        return [
            whole.crop((place * width, 0, (place + 1) * width, height)) for place in range(len(person.eval_prompts))
        ]
