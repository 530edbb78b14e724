"""The methods of the comparison on people without end, as the harness generates them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import DEFAULTS, OURS, PUBLISHED, Encoder, Method
from promptnet.evaluation.harness.renderer import encoder_folder
from promptnet.evaluation.method_names import PEOPLE_METHODS

FUSION: dict[str, Any] = {"class_scale": 2.0, "fusion_steps": 2, "fusion_scale": 2.0}
"""Fusion Sampling, both stages, beside plain guidance at the same scale."""


def make_methods(names: Iterable[str], base: str | Path, tune_steps: int) -> list[Method]:
    """Return methods in their order; "prompt" and "truth" are always among them.

    Args:
        names: some of `PEOPLE_METHODS`; empty for all that the base model has encoders for.
        base: folder of the base model.
        tune_steps: of per-user tuning.

    Raises:
        ValueError: a name is not known, or its encoder is missing.
    """
    wanted = set(names)
    if unknown := wanted - set(PEOPLE_METHODS):
        raise ValueError(f"methods {sorted(unknown)} are not among {', '.join(PEOPLE_METHODS)}")
    tuning = {"steps": tune_steps}
    every = [
        Method("prompt", "prompt", config=DEFAULTS["prompt"]),
        Method("described", "described", config=DEFAULTS["described"]),
        _subject("encode"),
        _subject("tuned", customize=tuning),
        _subject("fusion", customize=tuning, **FUSION),
        _subject("published", PUBLISHED, customize=tuning),
        _subject("published-fusion", PUBLISHED, customize=tuning, **FUSION),
        Method("truth", "truth"),
    ]
    if wanted:
        chosen = [method for method in every if method.name in {*wanted, "prompt", "truth"}]
        for method in chosen:
            if method.source == "subject":
                encoder_folder(base, method.encoder)
        return chosen
    return [method for method in every if method.encoder == OURS or _has(base, method.encoder)]


def _subject(name: str, encoder: Encoder = OURS, customize: dict[str, Any] | None = None, **config: Any) -> Method:
    return Method(name, "subject", encoder, customize is not None, {**DEFAULTS["subject"], **config}, customize or {})


def _has(base: str | Path, encoder: Encoder) -> bool:
    try:
        encoder_folder(base, encoder)
    except ValueError:
        return False
    return True
