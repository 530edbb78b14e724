"""`promptnet evaluate`: measure quality on avatars whose true answers are known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from promptnet.commands._checks import check_choice, check_choices, check_counts, check_files, check_numbers, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, find_base, pick_device, quiet
from promptnet.commands._output import check_output, parse_size
from promptnet.evaluation.method_names import EDIT_METHODS, EXPORT_METHODS, LADDER, PEOPLE_METHODS
from promptnet.inference.resolution.published_files import check_resolution
from promptnet.inference.sampling.scheduler_names import INVERTIBLE_SCHEDULERS
from promptnet.io.atomic import check_folder, write_whole


def _checked(base: str, device: str, seed: int, folders: Iterable[Path | None], **counts: int | None) -> str:
    """Check what evaluations have in common; return the base model's folder.

    Raises:
        OSError: the base model does not exist.
        ValueError: a folder cannot be made, a count is below 1, or device or seed cannot be.
    """
    for folder in folders:
        if folder is not None:
            check_folder(folder)
    check_counts(1, **counts)
    check_seed(seed)
    return check_model(base, device).name


def _check_methods(methods: list[str] | None) -> None:
    from promptnet.evaluation.harness.methods import METHODS

    check_choices("methods", methods, list(METHODS))


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
    """Compare methods on people never seen in training: identity, attributes, distance to the truth.

    Args:
        people: number of people
        prompts: number of prompts each
        steps: denoising steps an image
        split: test for figures to report; validation to choose settings; train for the gap to people seen in training
        methods: to compare (null: all)
        curves: also generate the trade-off curves of identity against attributes
        settings: file of the methods' parameters (null: the shipped one)
        out: a folder, made if it is missing, for results.json, sheet.png and plot.png; repeat the command to resume
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = _checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps, workers=workers)
    _check_methods(methods)
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
        methods=methods,
        curves=curves,
        settings=settings,
        out=out,
        seed=seed,
        device=place,
        workers=workers,
    )


def identity(
    a: Path,
    b: Path,
    /,
    embedder: Literal["face", "judge"] = "face",
    face_weights: Path | None = None,
    base: str = EMBEDDED,
    out: Path | None = None,
) -> None:
    """Compare who is in images: the cosine of each image in A with each in B.

    Args:
        a: an image, or a folder of images
        b: the same
        embedder: face for photographs, facenet-pytorch's InceptionResnetV1; judge for avatars
        face_weights: of the face embedder, a .safetensors file or the published .pt (null: where facenet-pytorch keeps
            them; nothing is downloaded)
        base: base model, beside which the judge of avatars lies
        out: a JSON file to write
    """
    for path in (a, b):
        if not path.exists():
            raise FileNotFoundError(f"'{path}' does not exist: check its name")
    check_files("face-weights", [face_weights])
    if out is not None:
        check_output(out, (".json",), overwrite=True)
    from promptnet.evaluation.harness.judges import judge_folder
    from promptnet.evaluation.identity import compare_identities, load_scorer

    judge = judge_folder(find_base(base), "validation") if embedder == "judge" else None
    found = compare_identities(a, b, load_scorer(embedder, face_weights, judge))
    for name, row in zip(found.ones, found.values.tolist(), strict=True):
        for other, value in zip(found.others, row, strict=True):
            print(f"{name}  {other}  {value:.4f}")
    print(f"mean {float(found.values.mean()):.4f} over {found.values.numel()} pairs")
    if out is not None:
        write_whole(out, (json.dumps(found.record(), indent=1) + "\n").encode(), public=True)


def two_people(
    pairs: int = 32,
    steps: int = 20,
    split: Literal["validation", "test"] = "test",
    out: Path | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Measure how much two people in one image blend, with regions and with one prompt for both.

    Args:
        pairs: number of pairs of people
        steps: denoising steps an image
        split: test for figures to report; validation for choices
        out: a folder, made if it is missing, for results.json, results.md and sheet.png; repeat the command to resume
        seed: makes the result reproducible
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = _checked(base, device, seed, [out], pairs=pairs, steps=steps)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.two_people.compare import evaluate_two_people
    from promptnet.io.progress import counting_bar

    with counting_bar("two people", pairs, "pairs") as advance:
        evaluate_two_people(
            found, pairs=pairs, steps=steps, split=split, out=out, seed=seed, device=place, on_pair=lambda *_: advance()
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
    found = _checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps, workers=workers)
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


def people(
    people: int = 128,
    prompts: int = 3,
    steps: int = 20,
    split: Literal["validation", "test"] = "test",
    world: Literal["known", "style", "hair", "color"] = "known",
    frame: str = "plain",
    methods: list[str] | None = None,
    tune_steps: int = 50,
    out: Path | None = None,
    judge: Path | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Compare ways of generating people of the endless world that no training saw: words, exact colours, shapes.

    Args:
        people: how many people
        prompts: how many prompts each, the first of which names nothing
        steps: denoising steps an image
        split: test for figures to report; validation for choices
        world: known, or people of a style, with hair drawings or with colours that no training had
        frame: how reference images were made: plain, zoom-0.7, zoom-1.4, shift, mirrored, jpeg-60, ...
        methods: which ways to compare: prompt, described, encode, tuned, truth (null: all)
        tune_steps: of per-user tuning
        out: a folder, made if it is missing, for people.json and sheet.png
        judge: folder of the judge (null: the one beside the base model)
        seed: makes the outcome reproducible
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = _checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps)
    check_counts(0, tune_steps=tune_steps)
    check_choices("methods", methods, PEOPLE_METHODS)
    place = pick_device(device)
    quiet()
    from promptnet.evaluation.people.compare import METHODS, evaluate_people
    from promptnet.evaluation.people.report import print_people

    results = evaluate_people(
        found,
        people=people,
        prompts=prompts,
        steps=steps,
        split=split,
        world=world,
        frame=frame,
        methods=methods or METHODS,
        tune_steps=tune_steps,
        out=out,
        judge=judge,
        seed=seed,
        device=place,
    )
    print_people(results)


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
        methods: to choose parameters of (null: all)
        keep_customize: keep per-user tuning as in the settings, and choose the parameters of sampling only
        rounds: largest number of rounds over all parameters of a method
        settings: file to start from (null: the shipped one)
        out: a folder, made if it is missing, for settings.yaml and tried.json; repeat the command to resume
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = _checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps, workers=workers)
    check_counts(rounds=rounds)
    _check_methods(methods)
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
    """Compare methods at sizes that the base model was not trained for: distance to real renders, fields, heads.

    Args:
        people: number of validation people, one full caption each
        steps: denoising steps an image
        sizes: WIDTHxHEIGHT, or WIDTHxHEIGHT:IMAGES for fewer (null: 32x32 96x96 128x128 160x96 192x192:16 256x256:4)
        methods: direct, attention, redilation, +dispersion, +damping, auto (null: these); published:NAME, a YAML file
        subjects: number of customised people to generate at the trained size and at twice that
        guidance_scale: of the captions (null: that of the method prompt-only)
        out: a folder, made if it is missing, for results.json and a sheet a size; repeat the command to resume
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = _checked(base, device, seed, [out], people=people, steps=steps, workers=workers)
    check_counts(0, subjects=subjects)
    check_numbers(guidance_scale=guidance_scale)
    for size in sizes or []:
        parse_size(size.partition(":")[0])
    for method in methods or []:
        if method not in LADDER:
            check_resolution(method)
    place = pick_device(device)
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
    correction_end: float = 1.0,
    split: Literal["validation", "test"] = "test",
    out: Path | None = None,
    cards: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Learn edits and score them on new seeds, on real renders, and on subjects: edit success and preservation.

    Args:
        edits: which edits (null: all)
        methods: to compare (null: all)
        seeds: number of images from seeds that nothing was learned on
        renders: number of real avatars, edited through inversion
        subjects: number of customised people, edited by cards learned without them
        learned_on: number of seeds that an edit is learned on
        steps: denoising steps
        iterations: number of optimisation iterations
        learning_rate: of the optimisation
        preserve: weight of preservation against edit success
        teacher: what measures edit success: "clip", directional CLIP as published, or "judge", the validation judge
            as well, which also preserves the other fields
        guidance_scale: of sampling
        scheduler: DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler or EulerDiscreteScheduler
        correction_end: fraction of the steps, from the noisy end, that are corrected towards a real image
        split: test for figures to report; validation to choose settings
        out: a folder, made if it is missing, for results.json and sheet.png; repeat the command to resume
        cards: a folder, made if it is missing, for the cards learned on several seeds, named after the edits
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = _checked(base, device, seed, [out, cards], steps=steps, iterations=iterations, workers=workers)
    check_counts(0, seeds=seeds, renders=renders, subjects=subjects, learned_on=learned_on)
    check_numbers(guidance_scale=guidance_scale, preserve=preserve)
    check_numbers(0, learning_rate=learning_rate)
    check_numbers(0, 1, correction_end=correction_end)
    check_choice("scheduler", scheduler, INVERTIBLE_SCHEDULERS)
    from promptnet.evaluation.edits.tasks import EDITS

    check_choices("edits", edits, list(EDITS))
    check_choices("methods", methods, EDIT_METHODS)
    place = pick_device(device)
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
        correction_end=correction_end,
        split=split,
        out=out,
        cards=cards,
        seed=seed,
        device=place,
        workers=workers,
    )


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
    found = _checked(base, device, seed, [out], people=people, prompts=prompts, steps=steps)
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
