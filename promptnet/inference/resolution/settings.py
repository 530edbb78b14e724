"""What is adapted, by how much and for how long, as data: derived, published, or somebody's own YAML."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from promptnet.inference.resolution.convolution import factor_pair
from promptnet.inference.resolution.dispersion import Transform
from promptnet.inference.resolution.published_files import (
    check_published,
    check_resolution,
    published_folder,
)

Progressive = Literal["no", "published", "capped"]
Factors = Mapping[str, tuple[float, float]]  # (vertical, horizontal), by layer name or the start of one
_UNSAID: Any = None  # steps that are not given: all, where there is something to do in them


@dataclass(frozen=True)
class ResolutionSettings:
    """How a network's layers behave at a size it was not trained for.

    Steps are counted in a drawing of `num_steps`; a drawing of another length is divided in the same shares. Layers are
    named as in the network; the start of a name stands for all 3x3 convolutions in there ("mid_block",
    "down_blocks.2.resnets"), and a longer name has precedence over a shorter one.

    Args:
        name: what messages call them.
        factors: re-dilation factors; what is not named stays plain.
        active_steps: for how many steps these act, from the noisiest on; not given, for all.
        progressive: how factors fall over the active steps: "no", "published", max(ceil(f (tau-i)/tau), 2), which
            raises factors below 2, or "capped", the smaller of f and that.
        damped_factors: the factors of the damped pass of noise-damped guidance.
        damped_steps: how many steps are damped; not given, those in which factors act if there are damped factors.
        dispersed: layers whose kernels are dispersed while they are re-dilated.
        dispersed_steps: for how many steps these are; not given, while factors act.
        dispersion: which matrix disperses, "solved" or an older published one, "R20to1" or "R2to1".
        attention: whether self-attention is scaled, in all steps.
        match_plain_size: false for the published output size of strided layers on odd sizes.
        num_steps: the length of the drawing in which the steps are counted.
        num_blocks: how many down blocks the network must have; null for any.
        size_px: (height, width) that they were made for; null for any.
        drawn_size_px: (height, width) to draw at; the image is then cropped and resized to the size asked. Null for
            the size asked. Only `PromptNetPipeline` can.
        trained_size_px: (height, width) of the model's own images; null for any.
        freeu: FreeU's b1, b2, s1, s2 in the published runs, for diffusers' `enable_freeu`. Nothing here enables it.

    Raises:
        ValueError: a value is out of range.
    """

    name: str = "own settings"
    factors: Factors = field(default_factory=dict)
    active_steps: int = _UNSAID
    progressive: Progressive = "no"
    damped_factors: Factors = field(default_factory=dict)
    damped_steps: int = _UNSAID
    dispersed: tuple[str, ...] = ()
    dispersed_steps: int = _UNSAID
    dispersion: Transform = "solved"
    attention: bool = True
    match_plain_size: bool = True
    num_steps: int = 50
    num_blocks: int | None = None
    size_px: tuple[int, int] | None = None
    drawn_size_px: tuple[int, int] | None = None
    trained_size_px: tuple[int, int] | None = None
    freeu: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"{self.name}: num_steps={self.num_steps!r} must be a whole number of at least 1.")
        self._say_steps("active_steps", bool(self.factors), self.num_steps)
        self._say_steps("damped_steps", bool(self.damped_factors), self.active_steps or self.num_steps)
        self._say_steps("dispersed_steps", bool(self.dispersed), self.active_steps)
        for name in ("active_steps", "damped_steps", "dispersed_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= self.num_steps:
                raise ValueError(
                    f"{self.name}: {name}={value!r} must be a whole number from 0 to num_steps={self.num_steps}."
                )
        for name, kind in (("progressive", Progressive), ("dispersion", Transform)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{self.name}: {name}={getattr(self, name)!r} must be one of {known}.")
        for name in ("attention", "match_plain_size"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{self.name}: {name}={getattr(self, name)!r} must be true or false.")
        if self.factors and not self.active_steps:
            raise ValueError(
                f"{self.name}: active_steps=0, so the factors {dict(self.factors)} would never act: leave active_steps "
                "out for all steps, or leave the factors out."
            )

    def _say_steps(self, name: str, needed: bool, all_steps: int) -> None:
        if getattr(self, name) is _UNSAID:
            object.__setattr__(self, name, all_steps if needed else 0)

    @property
    def is_plain(self) -> bool:
        """Whether they change nothing."""
        acts = any(f != (1, 1) for f in self.factors.values()) and self.active_steps
        return not (acts or self.damped_steps or self.attention)


def settings_from_mapping(values: Mapping[str, Any], name: str) -> ResolutionSettings:
    """Settings from what a YAML file holds. Factors are a number, or [vertical, horizontal]; sizes [height, width].

    Raises:
        ValueError: a key does not exist, or a value is out of range; names the file.
    """
    known = [parameter.name for parameter in fields(ResolutionSettings) if parameter.name != "name"]
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: resolution settings are a mapping with keys of {', '.join(known)}.")
    if unknown := [str(key) for key in values if key not in known]:
        raise ValueError(f"{name}: there is no setting {', '.join(unknown)}. There are {', '.join(known)}.")
    given: dict[str, Any] = dict(values)
    try:
        for key in ("factors", "damped_factors"):
            given[key] = {layer: factor_pair(factor) for layer, factor in (given.get(key) or {}).items()}
        for key in ("size_px", "drawn_size_px", "trained_size_px"):
            if given.get(key) is not None:
                height, width = given[key]
                given[key] = (int(height), int(width))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name}: {key}={values.get(key)!r} cannot be read: {error}") from error
    dispersed = given.get("dispersed") or ()
    if not (isinstance(dispersed, (list, tuple)) and all(isinstance(layer, str) for layer in dispersed)):
        raise ValueError(f"{name}: dispersed={dispersed!r} must be a list of layer names, such as [mid_block].")
    given["dispersed"] = tuple(dispersed)
    return ResolutionSettings(name, **given)


def load_settings(source: str | Path | Mapping[str, Any] | ResolutionSettings) -> ResolutionSettings:
    """Published settings by name ("published:sd21-2048x2048"), a YAML file, a mapping, or settings as they are.

    Raises:
        ValueError: there are no such settings, or they are not valid.
    """
    if isinstance(source, ResolutionSettings):
        return source
    if isinstance(source, Mapping):
        return settings_from_mapping(source, "the given settings")
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"settings={source!r} must be a name, a YAML file or a mapping ('off' draws unadapted).")
    name = str(source)
    if name.startswith("published:"):
        return _read(_published_file(name.removeprefix("published:")), name)
    path = Path(source)
    check_resolution(name)
    return _read(path, name)


def _published_file(name: str) -> Any:
    check_published(name)
    return published_folder() / f"{name}.yaml"


def _read(file: Any, name: str) -> ResolutionSettings:
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is no YAML: {error}") from error
    return settings_from_mapping(values, name)


def factor_at(factor: float, step: float, num_active: float, progressive: Progressive) -> float:
    """f at step i of tau, arXiv 2310.07702 section 3.2: max(ceil(f (tau-i)/tau), 2) if progressive.

    Published, that raises factors below 2; "capped" is min(f, that).
    """
    if progressive == "no":
        return factor
    falling = float(max(math.ceil(factor * (num_active - step) / num_active - 1e-9), 2))
    return min(factor, falling) if progressive == "capped" else falling
