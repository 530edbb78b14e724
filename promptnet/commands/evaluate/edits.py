"""`promptnet evaluate edits`: learn, apply and score edits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from promptnet.commands._checks import check_choice, check_choices, check_counts, check_numbers
from promptnet.commands._loading import EMBEDDED, pick_device, quiet
from promptnet.commands.evaluate._checks import checked
from promptnet.evaluation.method_names import EDIT_METHODS
from promptnet.inference.sampling.scheduler_names import INVERTIBLE_SCHEDULERS


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
    world: Literal["known", "style", "hair", "color"] = "known",
    frame: str = "plain",
    out: Path | None = None,
    cards: Path | None = None,
    learned: Path | None = None,
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
        world: known, or avatars of a style, with hair drawings or with colours that no training had
        frame: how avatars are framed: plain, zoom-0.7, zoom-1.4, shift, mirrored, jpeg-60, ...
        out: a folder, made if it is missing, for results.json and sheet.png; repeat the command to resume
        cards: a folder, made if it is missing, for the cards learned on several seeds, named after the edits, with
            what was measured of them
        learned: folder of such cards, to score in place of learning some
        seed: makes the result reproducible
        workers: number of processes (null: decided by the device)
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    found = checked(base, device, seed, [out, cards], steps=steps, iterations=iterations, workers=workers)
    check_counts(0, seeds=seeds, renders=renders, subjects=subjects, learned_on=learned_on)
    check_numbers(guidance_scale=guidance_scale, preserve=preserve)
    check_numbers(0, learning_rate=learning_rate)
    check_numbers(0, 1, correction_end=correction_end)
    check_choice("scheduler", scheduler, INVERTIBLE_SCHEDULERS)
    from promptnet.evaluation.edits.tasks import EDITS
    from promptnet.evaluation.harness.tasks import FRAMES

    check_choices("edits", edits, list(EDITS))
    check_choices("methods", methods, EDIT_METHODS)
    check_choice("frame", frame, list(FRAMES))
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
        world=world,
        frame=frame,
        out=out,
        cards=cards,
        learned=learned,
        seed=seed,
        device=place,
        workers=workers,
    )
