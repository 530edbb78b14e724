"""The comparison on people without end: unseen people, generated in several ways, judged against the true answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from promptnet.datasets.avatars.person import World
from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.renderer_cache import renderer_cache
from promptnet.evaluation.harness.tasks import Person, Split, make_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool
from promptnet.evaluation.people.methods import make_methods
from promptnet.evaluation.subjects.exact import score
from promptnet.evaluation.subjects.exact_results import summarise
from promptnet.images.contact_sheet import contact_sheet
from promptnet.io.atomic import make_folder, write_whole


def evaluate_people(
    base: str | Path,
    *,
    people: int = 128,
    prompts: int = 3,
    steps: int = 20,
    split: Split = "validation",
    world: World = "known",
    frame: str = "plain",
    methods: Sequence[str] | None = None,
    tune_steps: int = 50,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Compare ways of generating people that no training saw.

    With `out`, also writes people.json and sheet.png there, and keeps every image, so that a repeated call resumes.

    Args:
        base: folder of the pipeline; judges lie beside it.
        people: held-out people.
        prompts: images a person and method; the first prompt names nothing.
        steps: denoising steps.
        split: "test" for results, read by the test judge; "validation" for choices.
        world: "known", or one of the held-out "style", "hair" and "color".
        frame: how references were made, one of `harness.tasks.FRAMES`.
        methods: some of `PEOPLE_METHODS`, "prompt" and "truth" always among them; None is all that have encoders.
        tune_steps: of per-user tuning.
        out: a folder, made if it is missing.
        seed: decides people, prompts and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the one in the base model's folder or beside it.
        workers: processes; None is one a thread on a CPU.

    Returns:
        What people.json holds: for each method every measure, errors also as shares of the way from the prompt alone
        to the truth; tuned minus untuned, paired; skin errors by group.

    Raises:
        ValueError: a method, frame or split is not known; no such folder or judge.
    """
    chosen = make_methods(methods or (), base, tune_steps)
    folder = None if out is None else make_folder(out)
    asked = make_people(split, people, prompts, seed, world=world, frame=frame, neutral_first=True)
    reader = _load_people_judge(judge_folder(base, split, judge), device)
    spec = RendererSpec(Path(base), steps, device or "cpu")
    with renderer_cache(spec, chosen, folder) as cache, WorkerPool(spec, workers) as pool:
        images = _generate(asked, chosen, cache, pool)
    with torch.no_grad():
        scores = {method: score(found, asked, reader) for method, found in images.items()}
    results = summarise(scores, prompts, [person.identity.skin for person in asked])
    results["settings"] = {
        "people": people, "prompts": prompts, "steps": steps, "split": split, "world": world, "frame": frame,
        "tune_steps": tune_steps, "seed": seed,
    }  # fmt: skip
    if folder is not None:
        write_whole(folder / "people.json", json.dumps(results, indent=1), public=True)
        write_whole(folder / "sheet.png", _sheet(asked, images, prompts).save, public=True)
    return results


def _generate(
    asked: Sequence[Person], methods: Sequence[Method], cache: ImageCache, pool: WorkerPool
) -> dict[str, list[Image.Image]]:
    """Return every method's images, person by person."""
    images = {}
    for method in methods:
        pool.generate(asked, [method], cache, about=method.name)
        images[method.name] = [image for person in asked for image in cache.get(person, method)]
    return images


def _load_people_judge(folder: Path, device: str | None) -> Any:
    from promptnet.models.judge import AvatarJudge

    judge: Any = AvatarJudge.from_pretrained(folder, use_safetensors=True)
    return judge.float().eval().requires_grad_(False).to(device or "cpu")


def _sheet(asked: Sequence[Person], images: dict[str, list[Image.Image]], num_prompts: int) -> Image.Image:
    """One line a person: the reference, then each method's images; the first 24 people."""
    size = images["truth"][0].width
    lines = []
    for place, person in enumerate(asked[:24]):
        own = slice(place * num_prompts, (place + 1) * num_prompts)
        lines.append(
            ("", [person.reference_image(size), *(image for generated in images.values() for image in generated[own])])
        )
    return contact_sheet(lines, tile_px=size)
