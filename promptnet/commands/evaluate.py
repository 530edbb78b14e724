"""`promptnet evaluate`: how well it works, measured on avatars whose true answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptnet.commands._loading import EMBEDDED, find_base, pick_device, quiet
from promptnet.io.files import check_folder


def avatars(
    people: int = 64,
    prompts: int = 4,
    steps: int = 20,
    split: Literal["train", "validation", "test"] = "test",
    methods: list[str] | None = None,
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
        steps: denoising steps an image
        split: test for figures to report; validation for choosing settings; train for how much others are drawn worse
        methods: which ways to compare (null: all)
        curves: also draw the trade-off curves of identity against attributes
        settings: file of the rows' parameters (null: the one shipped)
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
    from promptnet.evaluation.subjects.compare import evaluate_avatars

    evaluate_avatars(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        split=split,
        methods=methods,
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
        steps: denoising steps an image
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
        people: how many people
        prompts: how many prompts each
        steps: denoising steps an image
        methods: whose parameters to choose (null: all)
        keep_customize: leave per-user tuning as the settings have it, and choose the parameters of sampling only
        rounds: over all parameters of a row, at most
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


def resolution(
    people: int = 96,
    steps: int = 20,
    sizes: list[str] | None = None,
    methods: list[str] | None = None,
    subjects: int = 0,
    guidance_scale: float | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Compare ways of drawing at sizes the base model was not trained for: distance to real renders, fields, heads.

    Args:
        people: how many validation people, one full caption each
        steps: denoising steps an image
        sizes: WIDTHxHEIGHT, or WIDTHxHEIGHT:PICTURES for fewer (null: 32x32 96x96 128x128 160x96 192x192:16 256x256:4)
        methods: direct, attention, redilation, +dispersion, +damping, auto (null: these); published:NAME, a YAML file
        subjects: how many customised people to draw at the trained size and at twice that
        guidance_scale: of the captions (null: that of the row prompt-only)
        out: an existing folder for results.json and a sheet a size; repeat the command to go on where it stopped
        seed: makes the outcome reproducible
        workers: processes that draw (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    if out is not None:
        check_folder(out)
    found, place = find_base(base), pick_device(device)
    quiet()
    from promptnet.evaluation.resolution.compare import evaluate_resolution

    evaluate_resolution(
        found,
        people=people,
        steps=steps,
        sizes=sizes,
        methods=methods,
        subjects=subjects,
        guidance_scale=guidance_scale,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )


def edits(
    edits: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: int = 64,
    renders: int = 32,
    subjects: int = 0,
    learned_on: int = 8,
    steps: int = 25,
    iterations: int = 10,
    learning_rate: float = 0.1,
    preserve: float = 0.05,
    teacher: Literal["judge", "clip"] = "judge",
    guidance_scale: float = 3.0,
    scheduler: str = "DDIMScheduler",
    correct_until: float = 1.0,
    split: Literal["validation", "test"] = "test",
    out: Path | None = None,
    cards: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Learn edits and judge them on other seeds, on real renders, and on subjects: does it appear, does the rest stay.

    Args:
        edits: which edits (null: all)
        methods: which ways to compare (null: all)
        seeds: images drawn from seeds that nothing was learned on
        renders: real avatars, edited through inversion
        subjects: customised people, edited by cards learned without them
        learned_on: seeds that an edit is learned on
        steps: denoising steps
        iterations: of the optimisation
        learning_rate: of the optimisation
        preserve: weight of staying like the original, against changing as is asked
        teacher: what says whether an edit appears: "clip", directional CLIP as published, or "judge", the validation
            judge too, which also holds the other fields
        guidance_scale: of the drawing
        scheduler: DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler or EulerDiscreteScheduler
        correct_until: share of the steps, from the noisy end, that hold on to a real image
        split: test for figures to report; validation for choosing settings
        out: an existing folder for results.json and sheet.png; repeat the command to go on where it stopped
        cards: an existing folder that gets the cards learned on several seeds, by the edits' names
        seed: makes the outcome reproducible
        workers: processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    for folder in (out, cards):
        if folder is not None:
            check_folder(folder)
    found, place = find_base(base), pick_device(device)
    quiet()
    from promptnet.evaluation.edits.cards import Learning
    from promptnet.evaluation.edits.compare import Images, evaluate_edits

    evaluate_edits(
        found,
        edits=edits,
        methods=methods,
        images=Images(seeds, renders, subjects, learned_on),
        how=Learning(
            steps,
            iterations,
            guidance_scale,
            learning_rate,
            preserve,
            seed=seed,
            scheduler=scheduler,
            teacher=teacher,
        ),
        correct_until=correct_until,
        split=split,
        out=out,
        cards=cards,
        seed=seed,
        device=place,
        workers=workers,
    )
