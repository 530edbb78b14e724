"""The comparison on people without end: unseen people, generated in several ways, judged against the true answers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from promptnet.datasets.people.person import Split, World, nearest_name
from promptnet.datasets.people.render import render_avatar
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.method_names import PEOPLE_METHODS
from promptnet.evaluation.people.colors import Array
from promptnet.evaluation.people.score import ERRORS, FRACTIONS, a_person, score, share_of_way
from promptnet.evaluation.people.tasks import PersonAsked, ask_people
from promptnet.images.contact_sheet import contact_sheet
from promptnet.io.atomic import make_folder, write_whole
from promptnet.metrics.bootstrap import difference, interval

METHODS = PEOPLE_METHODS
"""The prompt alone; the person and all that stays described in words; S* untuned and tuned; the true rendering."""


def evaluate_people(
    base: str | Path,
    *,
    people: int = 128,
    prompts: int = 3,
    steps: int = 20,
    split: Split = "validation",
    world: World = "known",
    frame: str = "plain",
    methods: Sequence[str] = METHODS,
    tune_steps: int = 50,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
) -> dict[str, Any]:
    """Compare ways of generating people that no training saw.

    With `out`, also writes people.json and sheet.png there.

    Args:
        base: folder of the pipeline; judges lie beside it.
        people: held-out people.
        prompts: images a person and method; the first prompt names nothing.
        steps: denoising steps.
        split: "test" for results, read by the test judge; "validation" for choices.
        world: "known", or one of the held-out "style", "hair" and "color".
        frame: how references were made, one of `tasks.FRAMES`.
        methods: some of `METHODS`; "prompt" and "truth" are always among them.
        tune_steps: of per-user tuning.
        out: a folder, made if it is missing.
        seed: decides people, prompts and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the one beside the base model.

    Returns:
        What people.json holds: for each method every measure, errors also as shares of the way from the prompt alone
        to the truth; tuned minus untuned, paired; skin errors by group.

    Raises:
        ValueError: a method, frame or split is not known; no such folder or judge.
    """
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise ValueError(f"methods {sorted(unknown)} are not among {', '.join(METHODS)}")
    folder = None if out is None else make_folder(out)
    asked = ask_people(people, prompts, split=split, world=world, frame=frame, seed=seed)
    named: Literal["test", "validation"] = "test" if split == "test" else "validation"
    reader = _load_people_judge(judge_folder(base, named, judge), device)
    renderer = _Renderer(base, steps, tune_steps, device)
    chosen = [method for method in METHODS if method in {*methods, "prompt", "truth"}]
    images = {method: [image for person in asked for image in renderer(person, method)] for method in chosen}
    eval_prompts = [eval_prompt for person in asked for eval_prompt in person.eval_prompts]
    with torch.no_grad():
        scores = {method: score(images[method], eval_prompts, reader) for method in chosen}
    results = summarise(scores, prompts, [person.reference.identity.skin for person in asked])
    results["settings"] = {
        "people": people, "prompts": prompts, "steps": steps, "split": split, "world": world, "frame": frame,
        "tune_steps": tune_steps, "seed": seed,
    }  # fmt: skip
    if folder is not None:
        write_whole(folder / "people.json", json.dumps(results, indent=1), public=True)
        write_whole(folder / "sheet.png", _sheet(asked, images, prompts).save, public=True)
    return results


def summarise(scores: dict[str, dict[str, Array]], num_prompts: int, skins: Sequence[str]) -> dict[str, Any]:
    """Return every method's measures with intervals over people.

    Args:
        scores: of each method, `score`, images person by person.
        num_prompts: images a person.
        skins: exact skin colour of each person.
    """
    means = {
        method: {name: a_person(values, num_prompts) for name, values in figures.items()}
        for method, figures in scores.items()
    }
    methods: dict[str, Any] = {}
    for method, figures in means.items():
        methods[method] = {
            name: interval(figures[name][~np.isnan(figures[name])]).record() for name in (*FRACTIONS, *ERRORS)
        }
        methods[method]["way"] = {
            name: share_of_way(figures[name], means["prompt"][name], means["truth"][name]) for name in ERRORS
        }
        methods[method]["skin"] = _by_group(figures, skins)
    results: dict[str, Any] = {"methods": methods}
    if {"tuned", "encode"} <= set(means):
        results["tuned - encode"] = {
            name: difference(means["tuned"][name], means["encode"][name]).record() for name in ("identity", *ERRORS)
        }
    return results


def _by_group(figures: dict[str, Array], skins: Sequence[str]) -> dict[str, Any]:
    groups = np.array([nearest_name("skin", skin) for skin in skins])
    return {
        group: {
            "people": int((groups == group).sum()),
            "error": interval(figures["error_skin"][groups == group]).record(),
            "lightness": interval(figures["lightness_skin"][groups == group]).record(),
        }
        for group in sorted(set(groups.tolist()))
    }


def _load_people_judge(folder: Path, device: str | None) -> Any:
    from promptnet.models.people_judge import PeopleJudge

    judge: Any = PeopleJudge.from_pretrained(folder, use_safetensors=True)
    return judge.float().eval().requires_grad_(False).to(device or "cpu")


class _Renderer:
    """Generates one person's images in one way, all methods from the same noise."""

    def __init__(self, base: str | Path, steps: int, tune_steps: int, device: str | None) -> None:
        from promptnet import PromptNetPipeline

        pipe: Any = PromptNetPipeline.from_pretrained(str(base))
        self.pipe = pipe.to(device or "cpu")
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.tune_steps = steps, tune_steps
        self.size_px = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def __call__(self, person: PersonAsked, method: str) -> list[Image.Image]:
        if method == "truth":
            return [render_avatar(eval_prompt.truth, self.size_px) for eval_prompt in person.eval_prompts]
        if method in ("prompt", "described"):
            words: Callable[..., str] = person.anyone if method == "prompt" else person.description
            return self._generate([words(eval_prompt) for eval_prompt in person.eval_prompts], person)
        image = person.image(self.size_px)
        generator = torch.Generator().manual_seed(person.eval_prompts[0].seed)
        quiet: dict[str, Any] = {"generator": generator, "progress_bar": False}
        untuned = method == "encode"
        subject = self.pipe.encode(image) if untuned else self.pipe.customize(image, steps=self.tune_steps, **quiet)
        return self._generate([eval_prompt.prompt for eval_prompt in person.eval_prompts], person, subject=subject)

    def _generate(self, prompts: list[str], person: PersonAsked, **subject: Any) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(eval_prompt.seed) for eval_prompt in person.eval_prompts]
        return self.pipe(prompts, num_inference_steps=self.steps, generator=generators, **subject).images


def _sheet(asked: Sequence[PersonAsked], images: dict[str, list[Image.Image]], num_prompts: int) -> Image.Image:
    """One line a person: the reference, then each method's images; the first 24 people."""
    size = images["truth"][0].width
    lines = []
    for place, person in enumerate(asked[:24]):
        own = slice(place * num_prompts, (place + 1) * num_prompts)
        lines.append(("", [person.image(size), *(image for generated in images.values() for image in generated[own])]))
    return contact_sheet(lines, tile_px=size)
