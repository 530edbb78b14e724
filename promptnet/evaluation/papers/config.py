"""The configs of `promptnet evaluate paper`: one YAML file a table, every value of which is known and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from promptnet.evaluation.method_names import PAPER_EDIT_ROWS, PROFUSION_PATTERNS, PROFUSION_ROWS, SCALES, SIZE_ROWS
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.scheduler_names import INVERTIBLE_SCHEDULERS
from promptnet.inference.tuning.config import TuningConfig
from promptnet.inference.values import did_you_mean, whole

Dtype = Literal["float32", "float16", "bfloat16"]


class ConfigError(ValueError):
    """A config that cannot be used. The message names the value and the fix."""


@dataclass(frozen=True)
class PaperConfig:
    """What every table needs.

    Args:
        out: the folder for images, results.json, results.md and sheet.png.
        paper: of which the table is.
        steps: denoising steps an image.
        seed: decides all noise.
        batch_size: images drawn at once.
        limit: number of people, images or prompts to take, the first ones; null takes all.
        dtype: of the networks that draw; float16 and bfloat16 are for GPUs.
        clip: CLIP model to a folder in transformers' layout or a file of weights; "own" with null is the base model's.
        faces: identity scorer to a file of weights of the face embedder; "judge" with "validation" or "test" for
            avatars.
    """

    out: str
    paper: str = ""
    steps: int = 50
    seed: int = 0
    batch_size: int = 4
    limit: int | None = None
    dtype: Dtype = "float32"
    clip: Mapping[str, str | None] = field(default_factory=dict)
    faces: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)
        if self.limit is not None:
            whole("limit", self.limit, 1)
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype={self.dtype!r} must be one of {', '.join(get_args(Dtype))}")
        for name in ("clip", "faces"):
            _mapping(name, getattr(self, name))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return a config of values.

        Raises:
            ConfigError: a value is not known or missing.
        """
        known = [parameter.name for parameter in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown {name!r}{did_you_mean(str(name), known)}; there are {', '.join(known)}")
        for name in cls.needs:
            if values.get(name) in (None, "", [], {}):
                raise ConfigError(f"{name} is missing: it has to be given")
        return cls(**values)

    needs: ClassVar[tuple[str, ...]] = ("out",)


@dataclass(frozen=True)
class ProFusionConfig(PaperConfig):
    """ProFusion's table (arXiv 2305.13579): similarity to the prompt by CLIP models, to the person by face embedders.

    Args:
        base: the base model's folder.
        references: a folder of people: an image each, or a folder of images each; or {avatars: split, people: number}.
        prompts: a text file with a prompt a line, or a list; each holds S*.
        rows: of the table.
        class_word: what the people are in a sentence.
        class_phrase: stands in place of S* where there is no subject, and for CLIP; null is "a" and the class word.
        images_per_prompt: of each person.
        promptnet: the encoder's folder; null is the base model's own.
        image_encoder: the CLIP image encoder's folder; null is the base model's own.
        e4t: the folder of `promptnet pretrain-e4t`, for the row e4t.
        guidance_scale: of the rows without fusion and refinement.
        sampling: of the row profusion, parameters of `SamplingConfig`.
        tuning: the same for `customize`, parameters of `TuningConfig`.
        baselines: method to its config file; others have the defaults.
    """

    needs: ClassVar[tuple[str, ...]] = ("out", "base", "references", "prompts", "rows")

    base: str = ""
    references: str | Mapping[str, Any] = ""
    prompts: str | list[str] = ""
    rows: tuple[str, ...] = ()
    class_word: str = "person"
    class_phrase: str | None = None
    images_per_prompt: int = 1
    promptnet: str | None = None
    image_encoder: str | None = None
    e4t: str | None = None
    guidance_scale: float = 7.5
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("images_per_prompt", self.images_per_prompt, 1)
        _rows(self.rows, PROFUSION_ROWS, PROFUSION_PATTERNS)
        SamplingConfig().replaced(_mapping("sampling", self.sampling))
        TuningConfig().replaced(_mapping("tuning", self.tuning))
        _mapping("baselines", self.baselines)
        if not self.clip and not self.faces:
            raise ConfigError("nothing is measured: name CLIP models under clip, or face embedders under faces")

    @property
    def phrase(self) -> str:
        """Return what stands in place of S* in plain words."""
        return self.class_phrase or f"a {self.class_word}"


@dataclass(frozen=True)
class EditsConfig(PaperConfig):
    """A comparison of edits (arXiv 2212.08698): change along the prompts, and preservation.

    Args:
        base: the base model's folder.
        edits: a list of {name, from, to, concept}: the prompt without the attribute, with it, and the attribute alone
            for SEGA (null: the prompt with it).
        rows: of the table.
        images: a folder of images to edit through inversion; null edits images from seeds.
        seeds: number of images from seeds.
        learned_on: number of other seeds that an edit is learned on; as published 1.
        iterations: of the optimisation.
        learning_rate: of the optimisation.
        preserve: weight of preservation in learning.
        teacher: folder of the CLIP that teaches; null is the base model's own.
        guidance_scale: of the drawing.
        scheduler: of the drawing.
    """

    needs: ClassVar[tuple[str, ...]] = ("out", "base", "edits", "rows", "clip")

    base: str = ""
    edits: tuple[Mapping[str, str], ...] = ()
    rows: tuple[str, ...] = ()
    images: str | None = None
    seeds: int = 8
    learned_on: int = 1
    iterations: int = 10
    learning_rate: float = 0.05
    preserve: float = 0.03
    teacher: str | None = None
    guidance_scale: float = 7.5
    scheduler: str = "DDIMScheduler"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "learned_on", "iterations"):
            whole(name, getattr(self, name), 1)
        _rows(self.rows, PAPER_EDIT_ROWS)
        if self.scheduler not in INVERTIBLE_SCHEDULERS:
            raise ConfigError(f"scheduler={self.scheduler!r} must be one of {', '.join(INVERTIBLE_SCHEDULERS)}")
        for edit in self.edits:
            if not isinstance(edit, Mapping) or not {"name", "from", "to"} <= set(edit) <= {
                "name",
                "from",
                "to",
                "concept",
            }:
                raise ConfigError(f"edit {edit!r} must have name, from and to, and may have concept")
        names = [edit["name"] for edit in self.edits]
        if len(set(names)) < len(names):
            raise ConfigError(f"edits are named {', '.join(names)}: give each a name of its own")
        if self.images is not None and "sega" in self.rows:
            raise ConfigError("row sega edits images from seeds only: leave it out, or leave out images")


@dataclass(frozen=True)
class SizesConfig(PaperConfig):
    """A table of sizes (Attn-SF, arXiv 2306.08645; ScaleCrafter, arXiv 2310.07702): FID and KID.

    Args:
        models: name to {base: folder, settings: {scale: settings of ScaleCrafter}}; for sd15, sd21 and sdxl the
            published settings are found by their names, and "derived" takes what `auto` would re-dilate.
        prompts: a text file with a prompt a line, or a list; or {avatars: split, people: number}.
        real: a folder of images, or {avatars: split, people: number}.
        scales: numbers of pixels over the trained number.
        rows: of the table.
        features: of FID and KID: {inception: file of weights}, or {judge: validation} for avatars.
        guidance_scale: of the prompts.
    """

    needs: ClassVar[tuple[str, ...]] = ("out", "models", "prompts", "real", "rows", "features")

    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: str | list[str] | Mapping[str, Any] = ""
    real: str | Mapping[str, Any] = ""
    scales: tuple[str, ...] = SCALES
    rows: tuple[str, ...] = SIZE_ROWS
    features: Mapping[str, str] = field(default_factory=dict)
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _rows(self.rows, SIZE_ROWS)
        for scale in self.scales:
            if scale not in SCALES:
                raise ConfigError(f"unknown scale {scale!r}{did_you_mean(str(scale), SCALES)}: {', '.join(SCALES)}")
        if len(self.features) != 1 or set(self.features) - {"inception", "judge"}:
            raise ConfigError(f"features={dict(self.features)!r} must be {{inception: FILE}} or {{judge: validation}}")
        for name, model in self.models.items():
            if not isinstance(model, Mapping) or "base" not in model or set(model) - {"base", "settings"}:
                raise ConfigError(f"models: {name} must have base, a base model's folder, and may have settings")


PAPERS: dict[str, type[PaperConfig]] = {
    "profusion": ProFusionConfig,
    "disentanglement": EditsConfig,
    "attn-sf": SizesConfig,
    "scalecrafter": SizesConfig,
}


def load_config(path: Path, **given: Any) -> PaperConfig:
    """Read the config of a table.

    Args:
        path: of a YAML file such as configs/evaluate/profusion.yaml.
        given: values that replace the file's, where they are not None.

    Raises:
        ValueError: the file cannot be read, or a value is not known, missing or out of range; names the file.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the config '{path}' cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("paper") not in PAPERS:
        found = values.get("paper") if isinstance(values, dict) else values
        raise ConfigError(f"'{path}': paper={found!r} must be one of {', '.join(PAPERS)}")
    values |= {name: value for name, value in given.items() if value is not None}
    values |= {name: tuple(values[name]) for name in _SEVERAL if isinstance(values.get(name), list)}
    try:
        return PAPERS[values["paper"]].read(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'{path}': {error}") from error


_SEVERAL = ("rows", "edits", "scales")


def _rows(rows: tuple[str, ...], known: tuple[str, ...], patterns: tuple[str, ...] = ()) -> None:
    """Check the rows of a table.

    Raises:
        ConfigError: one is not known, or stands there twice.
    """
    for row in rows:
        if row not in known and not any(re.fullmatch(pattern, str(row)) for pattern in patterns):
            also = "".join(f", {pattern.partition('(')[0]}N" for pattern in patterns)
            raise ConfigError(f"unknown row {row!r}{did_you_mean(str(row), known)}; rows are {', '.join(known)}{also}")
    if len(set(rows)) < len(rows):
        raise ConfigError(f"a row stands twice among {', '.join(rows)}")


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={value!r} must hold names with values")
    return value
