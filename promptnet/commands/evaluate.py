"""`promptnet evaluate`: how well it works, measured on portraits whose true answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptnet.commands.loading import EMBEDDED, find_base, pick_device, quiet
from promptnet.evaluation.files import check_folder


def avatars(
    people: int = 64,
    prompts: int = 4,
    steps: int = 20,
    split: Literal["validation", "test"] = "test",
    rows: list[str] | None = None,
    curves: bool = False,
    settings: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Compare ways of drawing people never seen in training: identity, attributes, distance to the truth.

    Args:
        people: how many people
        prompts: how many prompts each
        steps: denoising steps a picture
        split: test for figures to report; validation for choosing settings
        rows: which ways to compare (null: all)
        curves: also draw the trade-off curves of identity against attributes
        settings: file of the rows' knobs (null: the one shipped)
        out: an existing folder for results.json, sheet.png and plot.png; repeat the command to go on where it stopped
        seed: makes the outcome reproducible
        workers: processes that draw (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    if out is not None:
        check_folder(out)
    found, place = find_base(base), pick_device(device)
    quiet()
    from promptnet.evaluation.avatars import evaluate_avatars

    evaluate_avatars(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        split=split,
        rows=rows,
        curves=curves,
        settings=settings,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )


def base_model(
    people: int = 64,
    prompts: int = 2,
    steps: int = 20,
    split: Literal["validation", "test"] = "validation",
    guidance_scale: float | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Read back what the base model draws from full captions of people never seen in training.

    Args:
        people: how many people
        prompts: how many captions each
        steps: denoising steps a picture
        split: validation, or test for figures to report
        guidance_scale: of the captions (null: that of the row prompt-only)
        out: an existing folder for base.json
        seed: makes the outcome reproducible
        workers: processes that draw (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    if out is not None:
        check_folder(out)
    found, place = find_base(base), pick_device(device)
    quiet()
    from promptnet.evaluation.base import evaluate_base

    evaluate_base(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        split=split,
        guidance_scale=guidance_scale,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )


def tune(
    people: int = 32,
    prompts: int = 2,
    steps: int = 20,
    rows: list[str] | None = None,
    keep_customize: bool = False,
    rounds: int = 2,
    settings: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Choose the knobs of sampling and tuning on validation people.

    Args:
        people: how many people
        prompts: how many prompts each
        steps: denoising steps a picture
        rows: whose knobs to choose (null: all)
        keep_customize: leave per-user tuning as the settings have it, and choose the knobs of sampling only
        rounds: over all knobs of a row, at most
        settings: where to start (null: the file shipped)
        out: an existing folder for settings.yaml and tried.json; repeat the command to go on where it stopped
        seed: makes the outcome reproducible
        workers: processes that draw (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    if out is not None:
        check_folder(out)
    found, place = find_base(base), pick_device(device)
    quiet()
    from promptnet.evaluation.tuning import tune_settings

    tune_settings(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        rows=rows,
        customize=not keep_customize,
        rounds=rounds,
        settings=settings,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )
