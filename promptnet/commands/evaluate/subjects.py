"""`promptnet evaluate avatars`, `base` and `tune`: measure on avatars whose true answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptnet.commands._checks import check_counts, check_files, check_numbers
from promptnet.commands._loading import EMBEDDED, pick_device, quiet
from promptnet.commands.evaluate._checks import check_frame, check_methods, checked


def avatars(
    people: int = 64,
    prompts: int = 4,
    steps: int = 20,
    split: Literal["train", "validation", "test"] = "test",
    world: Literal["known", "style", "hair", "color"] = "known",
    frame: str = "plain",
    neutral: bool = False,
    methods: list[str] | None = None,
    curves: bool = False,
    settings: Path | None = None,
    out: Path | None = None,
    judge: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Compare methods on people never seen in training: words, exact colours, shapes, distance to the truth.

    Args:
        people: number of people
        prompts: number of prompts each
        steps: denoising steps an image
        split: test for figures to report; validation to choose settings; train for the gap to people seen in training
        world: known, or people of a style, with hair drawings or with colours that no training had
        frame: how reference images were made: plain, zoom-0.7, zoom-1.4, shift, mirrored, jpeg-60, ...
        neutral: the first prompt of each person names nothing
        methods: to compare (null: all that the base model has encoders for); prompt-only gives shares of the way
        curves: also generate the trade-off curves of identity against attributes
        settings: file of the methods' parameters (null: the shipped one)
        out: a folder, made if it is missing, for results.json, sheet.png and plot.png; repeat the command to resume
        judge: folder of the judge (null: the one in the base model's folder or beside it)
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps, workers=workers)
    check_methods(methods)
    check_frame(frame)
    check_files("settings", [settings])
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.subjects.compare import evaluate_avatars

    evaluate_avatars(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        split=split,
        world=world,
        frame=frame,
        neutral=neutral,
        methods=methods,
        curves=curves,
        judge=judge,
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
    """Score the base model on full captions of people never seen in training.

    Args:
        people: number of people
        prompts: number of captions each
        steps: denoising steps an image
        split: validation, or test for figures to report
        guidance_scale: of the captions (null: that of the method prompt-only)
        out: a folder, made if it is missing, for base.json
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps, workers=workers)
    check_numbers(guidance_scale=guidance_scale)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.subjects.base_model import evaluate_base

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
    methods: list[str] | None = None,
    keep_customize: bool = False,
    rounds: int = 2,
    settings: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Choose the parameters of sampling and tuning on validation people.

    Args:
        people: number of people
        prompts: number of prompts each
        steps: denoising steps an image
        methods: to choose parameters of (null: all that the base model has encoders for)
        keep_customize: keep per-user tuning as in the settings, and choose the parameters of sampling only
        rounds: largest number of rounds over all parameters of a method
        settings: file to start from (null: the shipped one)
        out: a folder, made if it is missing, for settings.yaml and tried.json; repeat the command to resume
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps, workers=workers)
    check_counts(rounds=rounds)
    check_methods(methods)
    check_files("settings", [settings])
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.subjects.tune import tune_settings

    tune_settings(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        methods=methods,
        customize=not keep_customize,
        rounds=rounds,
        settings=settings,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )
