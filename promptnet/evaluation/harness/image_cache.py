"""Cache of generated images, one strip for each person and method, so that an interrupted run resumes.

A strip's name is a hash of everything that decides its images (weights, steps, the method's parameters, the person's
tasks): methods with the same settings share it, and a changed setting never finds an old image.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from promptnet.io.atomic import write_whole


class Unit(Protocol):
    """Images generated together and stored as one strip: a person with prompts, or a group of images to edit."""

    @property
    def index(self) -> int:
        """Return its index among its kind."""
        ...

    @property
    def eval_prompts(self) -> Sequence[Any]:
        """Return its prompts, an image each."""
        ...


class Method(Protocol):
    """A method of a comparison: how images are generated."""

    @property
    def name(self) -> str:
        """Return its name, for messages."""
        ...

    @property
    def source(self) -> str:
        """Return where images come from: "subject" if they need an encoder."""
        ...

    @property
    def encoder(self) -> str:
        """Return the name of that encoder."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Return its sampling parameters; "width" and "height" if images differ in size from the image cache's."""
        ...

    def record(self) -> dict[str, Any]:
        """Return everything that decides the images."""
        ...


@dataclass(frozen=True)
class ImageCache:
    """A folder of strips.

    Args:
        folder: of the strips; made if its parent exists.
        weights: hashes of the base model, as "base", and of the encoders.
        steps: denoising steps.
        size_px: side of an image, if a method's parameters have no `width` and `height`.
    """

    folder: Path
    weights: Mapping[str, str]
    steps: int
    size_px: int

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def path(self, person: Unit, method: Method) -> Path:
        """Return the path of a person's strip for a method."""
        weights = [self.weights["base"], self.weights[method.encoder] if method.source == "subject" else None]
        content: list[Any] = [weights, self.steps, self.size_px, method.record(), repr(person)]
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{name}.png"

    def has(self, person: Unit, method: Method) -> bool:
        """Return whether the strip exists."""
        return self.path(person, method).is_file()

    def size(self, method: Method) -> tuple[int, int]:
        """Return width and height of a method's images, in pixels."""
        return int(method.config.get("width", self.size_px)), int(method.config.get("height", self.size_px))

    def put(self, person: Unit, method: Method, images: Sequence[Image.Image]) -> None:
        """Store a person's images.

        Raises:
            ValueError: not one image of the method's size for every prompt.
        """
        size = width, height = self.size(method)
        if len(images) != len(person.eval_prompts) or any(image.size != size for image in images):
            sizes = sorted({image.size for image in images})
            raise ValueError(
                f"method {method.name!r} generated {len(images)} images of {sizes}, "
                f"not {len(person.eval_prompts)} of {size}"
            )
        strip = Image.new("RGB", (width * len(images), height))
        for place, image in enumerate(images):
            strip.paste(image.convert("RGB"), (place * width, 0))
        write_whole(self.path(person, method), strip.save, public=True)

    def get(self, person: Unit, method: Method) -> list[Image.Image]:
        """Return a person's images, prompt by prompt."""
        with Image.open(self.path(person, method)) as strip:
            whole = strip.convert("RGB")
        width, height = self.size(method)
        return [
            whole.crop((place * width, 0, (place + 1) * width, height)) for place in range(len(person.eval_prompts))
        ]
