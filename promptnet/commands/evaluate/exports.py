"""`promptnet evaluate export`: what exports lose."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptnet.commands._checks import check_choices
from promptnet.commands._loading import EMBEDDED, pick_device, quiet
from promptnet.commands.evaluate._checks import checked
from promptnet.evaluation.method_names import EXPORT_METHODS


def exports(
    people: int = 32,
    prompts: int = 4,
    steps: int = 20,
    split: Literal["train", "validation", "test"] = "test",
    methods: list[str] | None = None,
    out: Path | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Measure what exports lose: identity, attributes and distance against the exact pipeline.

    Args:
        people: number of people
        prompts: number of prompts each
        steps: denoising steps an image
        split: test for figures to report; validation to choose settings
        methods: to compare (null: all)
        out: a folder, made if it is missing, for export.json and the images; repeat the command to resume
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps)
    check_choices("methods", methods, EXPORT_METHODS)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.exports.compare import evaluate_exports, print_results

    results = evaluate_exports(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        split=split,
        methods=EXPORT_METHODS if methods is None else methods,
        out=out,
        seed=seed,
        device=place,
    )
    print_results(results)
