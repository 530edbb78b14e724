"""`promptnet learn-edit`: learn an edit card from two prompts."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from promptnet.commands._checks import check_choice, check_counts, check_files, check_numbers, check_plain, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, find_part, pick_device, quiet
from promptnet.commands._methods import needs_encoder
from promptnet.commands._output import check_output
from promptnet.commands._progress import status
from promptnet.inference.sampling.scheduler_names import INVERTIBLE_SCHEDULERS
from promptnet.io.atomic import make_folder
from promptnet.io.progress import measuring_bar


def learn_edit(
    from_: str,
    to: str,
    out: Path,
    image: list[Path] | None = None,
    subject: list[Path] | None = None,
    num_seeds: int = 8,
    batch_size: int = 8,
    steps: int = 25,
    iterations: int = 10,
    scheduler: str = "DDIMScheduler",
    guidance_scale: float = 3.0,
    learning_rate: float = 0.1,
    preserve: float = 0.05,
    show: list[str] | None = None,
    keep_all_but: list[str] | None = None,
    seed: int = 0,
    clip: str | None = None,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Learn an edit: the weight of each of two prompts at every denoising step.

    Args:
        from_: the prompt without the attribute, for example "a portrait of a person"
        to: the same prompt with the attribute, for example "a happy portrait of a person"
        out: the edit card to write (.safetensors)
        image: learn on these images (their central squares) instead of seeds
        subject: learn on the images in subject files of `promptnet customize` instead of seeds
        num_seeds: number of seeds to learn on
        batch_size: number of seeds at once; memory grows with it
        steps: denoising steps, which is also the number of weights
        iterations: number of optimisation iterations
        scheduler: DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler or EulerDiscreteScheduler
        guidance_scale: of sampling
        learning_rate: of the optimisation
        preserve: weight of preservation against edit success
        show: fields to appear ("expression=happy"); the validation judge teaches them beside CLIP (null: no judge)
        keep_all_but: fields that may change ("expression"); the validation judge preserves the others (null: no judge)
        seed: makes the result reproducible
        clip: folder of the CLIP that measures the change (null: the embedded model's own)
        base: base model, a folder in diffusers layout, Stable Diffusion 1.5 or 2 by architecture
        device: auto, cpu, cuda, ...
    """
    check_output(out, (".safetensors",))
    check_counts(iterations=iterations, num_seeds=num_seeds, batch_size=batch_size, steps=steps)
    check_numbers(guidance_scale=guidance_scale)
    check_numbers(0, learning_rate=learning_rate, preserve=preserve)
    check_choice("scheduler", scheduler, INVERTIBLE_SCHEDULERS)
    check_seed(seed)
    check_files("image", image or [])
    check_files("subject", subject or [])
    for prompt in (from_, to):
        if not subject:
            check_plain(prompt)
    if image and subject:
        raise ValueError("give either --image or --subject: what to learn on")
    if clip is not None:
        find_part(clip, "clip")
    asked = asked_fields(show or [])
    found = check_model(base, device, subjects=needs_encoder(subject or [])).name
    place = pick_device(device)
    quiet()
    with status("loading the base model"):
        from promptnet.evaluation.harness.judges import judge_folder
        from promptnet.training.editing.data import SeedDataModule
        from promptnet.training.editing.judge_losses import JudgeEditSuccess, JudgePreservation
        from promptnet.training.editing.losses import DirectionalClip, LossPart, VisionPerceptual
        from promptnet.training.editing.stage import EditStage

        parts: list[LossPart] = [VisionPerceptual(preserve, clip), DirectionalClip(clip_dir=clip)]
        judge = str(judge_folder(found, "validation")) if asked or keep_all_but else ""
        parts += [JudgeEditSuccess(asked, judge)] if asked else []
        parts += [JudgePreservation(keep_all_but, judge)] if keep_all_but else []
        stage = EditStage(
            from_,
            to,
            str(out),
            found,
            num_steps=steps,
            scheduler=scheduler,
            guidance_scale=guidance_scale,
            learning_rate=learning_rate,
            parts=parts,
            images=[str(path) for path in image or []],
            subjects=[str(path) for path in subject or []],
            image_every=0,
            seed=seed,
        )
    count = len(image or subject or []) or num_seeds
    start_s = time.perf_counter()
    make_folder(out.parent)
    fit(stage, SeedDataModule(count, min(batch_size, count), seed), place, iterations)
    print(f"{out}: learned in {time.perf_counter() - start_s:.1f} s")


def asked_fields(words: list[str]) -> dict[str, str]:
    """Parse fields and values from FIELD=VALUE.

    Raises:
        ValueError: a word has another form, or a field is named twice.
    """
    asked: dict[str, str] = {}
    for word in words:
        field, is_there, value = word.partition("=")
        if not (field and is_there and value):
            raise ValueError(f"show {word!r} is not FIELD=VALUE, such as expression=happy")
        if field in asked:
            raise ValueError(f"show names {field!r} twice, as {asked[field]!r} and as {value!r}")
        asked[field] = value
    return asked


def fit(stage: Any, data: Any, device: str, iterations: int) -> None:
    """Learn the edit, with a bar on stderr."""
    from promptnet.training.editing.learn import learn_card

    done = itertools.count(1)
    with measuring_bar("learning the edit") as advance:
        learn_card(stage, data, iterations=iterations, device=device, on_step=lambda: advance(next(done), iterations))
