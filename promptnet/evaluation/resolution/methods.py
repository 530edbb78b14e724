"""Methods of generating at another size, for the evaluation's renderer."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import PROMPT_PARAMETERS, Method
from promptnet.evaluation.harness.renderer import image_size
from promptnet.evaluation.method_names import LADDER
from promptnet.inference.resolution.auto import automatic_settings, in_proportion, is_far, redilation
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings

SIZES = ("32x32", "96x96", "128x128", "160x96", "192x192:16", "256x256:4")
TRAINED = "trained"
"""Name of the method that generates the model's own images at the trained size."""


@dataclass(frozen=True)
class Size:
    """A size, and its number of images; None is as many as there are people."""

    width: int
    height: int
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Parse WIDTHxHEIGHT or WIDTHxHEIGHT:IMAGES.

        Raises:
            ValueError: the text has another form.
        """
        found = re.fullmatch(r"(\d+)x(\d+)(?::(\d+))?", text)
        if not found:
            raise ValueError(f"size {text!r} is not WIDTHxHEIGHT in pixels, or WIDTHxHEIGHT:IMAGES")
        width, height, count = (int(part) if part else None for part in found.groups())
        if count == 0:
            raise ValueError(f"size {text!r} asks for no images")
        return cls(width or 0, height or 0, count)

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Shape:
    """The parts of a base model that settings are derived from."""

    num_blocks: int
    trained_px: int
    trained_latents: int

    @property
    def multiple_px(self) -> int:
        """Return what sides must be multiples of."""
        return self.trained_px // self.trained_latents * 2 ** (self.num_blocks - 1)

    @classmethod
    def of(cls, base: str | Path) -> "Shape":
        """Read the shape from a base model's folder.

        Raises:
            ValueError: `base` is not the folder of a base model.
        """
        trained_px = image_size(base)
        unet = json.loads((Path(base) / "unet" / "config.json").read_text("utf-8"))
        return cls(len(unet["block_out_channels"]), trained_px, unet["sample_size"])


def make_methods(
    names: Sequence[str] | None, size: Size, shape: Shape, steps: int, config: Mapping[str, Any]
) -> list[Method]:
    """Return the methods of one size; a name not in `LADDER` is settings: "published:..." or a YAML file.

    Raises:
        ValueError: no names, or unknown settings.
    """
    chosen = LADDER if names is None else tuple(dict.fromkeys(names))
    if not chosen:
        raise ValueError(f"methods is empty: choose from {', '.join(LADDER)}, or give settings")
    return [method_at(name, resolution_of(name, size, shape, steps), size, config) for name in chosen]


def method_at(name: str, resolution: str | dict[str, Any], size: Size, config: Mapping[str, Any]) -> Method:
    """Return a method for prompts without a subject at a size."""
    sampling: dict[str, Any] = {**PROMPT_PARAMETERS, **config}
    sampling |= {"width": size.width, "height": size.height, "resolution": resolution}
    return Method(name, "prompt", config=sampling)


def resolution_of(name: str, size: Size, shape: Shape, steps: int) -> str | dict[str, Any]:
    """Return what a method gives the pipeline: "off", or settings as a mapping, which the image cache compares."""
    if name in ("direct", TRAINED):
        return "off"
    settings = ladder_settings(size, shape, steps)[name] if name in LADDER else load_settings(name)
    record = dataclasses.asdict(settings)
    del record["name"]
    return record


def ladder_settings(size: Size, shape: Shape, steps: int) -> dict[str, ResolutionSettings]:
    """Return the settings of the ladder's methods at one size.

    Re-dilation's factors are those of `adapted` if it has any, without those for dispersed kernels alone; an image
    smaller than trained gets the ratio of the sides in its deepest blocks.
    """
    adapted, auto = (_automatic(size, shape, steps, multiple_px) for multiple_px in (None, shape.multiple_px))
    ratios = (size.height / shape.trained_px, size.width / shape.trained_px)
    dilated = redilation(shape.num_blocks, in_proportion(ratios, shape.trained_latents), shape.trained_latents)
    factors = dict(dilated) if adapted.factors else _smaller(ratios, shape)
    plain = ResolutionSettings(num_steps=steps, attention=False)
    alone = dataclasses.replace(plain, factors=factors, active_steps=adapted.active_steps or steps)
    acting = alone.active_steps
    return {
        "attention": dataclasses.replace(plain, attention=True),
        "redilation": alone,
        "+dispersion": dataclasses.replace(alone, dispersed=tuple(factors), dispersed_steps=acting),
        "+damping": dataclasses.replace(alone, damped_factors=_deepest(factors, shape), damped_steps=acting),
        "adapted": adapted,
        "auto": auto,
    }


def _automatic(size: Size, shape: Shape, steps: int, multiple_px: int | None) -> ResolutionSettings:
    return automatic_settings(
        shape.num_blocks,
        (shape.trained_px, shape.trained_px),
        (size.height, size.width),
        steps,
        trained_latents=shape.trained_latents,
        multiple_px=multiple_px,
    )


def _deepest(factors: Mapping[str, tuple[float, float]], shape: Shape) -> dict[str, tuple[float, float]]:
    """Return the damped pass's smaller map: the deepest blocks alone."""
    names = {f"down_blocks.{shape.num_blocks - 1}", "mid_block", "up_blocks.0"}
    return {name: factor for name, factor in factors.items() if name in names}


def _smaller(ratios: tuple[float, float], shape: Shape) -> dict[str, tuple[float, float]]:
    if not any(is_far(ratio) for ratio in ratios):
        return {}
    return {f"down_blocks.{shape.num_blocks - 1}": ratios, "mid_block": ratios, "up_blocks.0": ratios}
