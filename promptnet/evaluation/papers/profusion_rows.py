"""The rows of ProFusion's table: with which method a person is customised, and how images are drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from promptnet.baselines.config import CONFIGS, BaselineConfig
from promptnet.baselines.config import load_config as load_baseline
from promptnet.evaluation.method_names import PROFUSION_PATTERNS
from promptnet.evaluation.papers.config import ConfigError, ProFusionConfig
from promptnet.inference.sampling.config import SamplingConfig

Method = Literal["prompt-only", "promptnet", "textual-inversion", "dreambooth", "dreambooth-lora", "e4t"]
PLAIN: Mapping[str, Any] = {"class_scale": 0.0, "fusion_steps": 0}
"""What leaves nothing but classifier-free guidance."""
ONE_VIEW: Mapping[str, Any] = {"num_views": 1, "scales": [1.0, 1.0], "flip": False}
"""What leaves tuning without augmentation."""


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        name: in the table.
        method: that customises.
        sampling: parameters of the pipeline.
        tuning: parameters of the method; None does not tune.
    """

    name: str
    method: Method
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Return what decides the images beside weights and inputs."""
        return {"method": self.method, "sampling": dict(self.sampling), "tuning": self.tuning}


def make_rows(config: ProFusionConfig) -> list[Row]:
    """Return the rows of a config, in its order.

    Raises:
        ValueError: a row is another one's copy under these parameters, or a baseline's config does not fit.
    """
    unknown = sorted(set(config.baselines) - set(CONFIGS))
    if unknown:
        raise ConfigError(f"baselines: {unknown[0]!r} is none of {', '.join(CONFIGS)}")
    rows = [make_row(name, config) for name in config.rows]
    _check_different(rows, make_row("profusion", config))
    return rows


def make_row(name: str, config: ProFusionConfig) -> Row:
    """Return one row."""
    if name == "prompt-only":
        return Row(name, "prompt-only", {"guidance_scale": config.guidance_scale})
    if name in CONFIGS:
        plain = {**PLAIN, "subject_scale": config.guidance_scale}
        return Row(name, name, plain, vars(baseline_config(name, config)))  # pyright: ignore[reportArgumentType]
    sampling, tuning = {**vars(_sampling(config)), **_changed(name)}, dict(config.tuning)
    if name == "no-augmentation":
        tuning |= ONE_VIEW
    return Row(name, "promptnet", sampling, None if name == "untuned" else tuning)


def baseline_config(method: str, config: ProFusionConfig) -> BaselineConfig:
    """Return a baseline's config.

    Raises:
        ValueError: its file cannot be read, or a value is not known.
    """
    path = config.baselines.get(method)
    return load_baseline(method, None if path is None else Path(path))


def _sampling(config: ProFusionConfig) -> SamplingConfig:
    return SamplingConfig(guidance_scale=config.guidance_scale).replaced(
        {**config.sampling, "num_inference_steps": config.steps}
    )


def _changed(name: str) -> dict[str, Any]:
    """Return the parameters in which a row of ours differs from profusion."""
    steps, guidance = (re.fullmatch(pattern, name) for pattern in PROFUSION_PATTERNS)
    if steps:
        return {"fusion_steps": int(steps[1])}
    if guidance:
        return {"subject_scale": float(guidance[1])}
    return {"no-fusion": {"fusion_steps": 0}, "no-refinement": {"class_scale": 0.0}}.get(name, {})


def _check_different(rows: list[Row], ours: Row) -> None:
    for row in rows:
        if row.name != ours.name and row.method == ours.method and row.record() == ours.record():
            raise ConfigError(
                f"row {row.name} is profusion itself with this sampling and tuning: leave it out, or change them"
            )
