"""Evaluate the base model alone: accuracy of the judge on images from full captions of held-out people.

No encoder and no sampler can recover what is lost here, so look here first.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from promptnet.datasets.avatars.person import FIELDS, IDENTITY_FIELDS
from promptnet.evaluation.harness.chances import attribute_chances, identity_chances
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.renderer_cache import renderer_cache
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import Person, Split, make_described_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool
from promptnet.evaluation.subjects.compare import check_run
from promptnet.io.atomic import make_folder, write_whole
from promptnet.metrics.bootstrap import interval
from promptnet.metrics.judge import Judge, load_judge, read_images

if TYPE_CHECKING:
    from rich.table import Table

TARGETS = {
    **dict.fromkeys(("style", "background", "glasses", "skin", "hair_color", "clothes_color"), 0.85),
    "expression": 0.70,
    "hair": 0.60,
}
"""The accuracy that each field should reach."""


def evaluate_base(
    base: str | Path,
    *,
    people: int = 64,
    prompts: int = 2,
    steps: int = 20,
    split: Split = "validation",
    guidance_scale: float | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Generate full captions of held-out people with the base model and print the judge's accuracy, field by field.

    With `out`, it also writes base.json there and keeps the images in a folder of their own.

    Args:
        base: folder of the base model; judges lie beside it.
        people: held-out people.
        prompts: captions a person.
        steps: denoising steps.
        split: "validation" or "test", each scored by its own judge.
        guidance_scale: None is that of the method `prompt-only`.
        out: a folder, made if it is missing.
        seed: decides people, captions and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the one beside the base model.
        workers: number of processes; None decides by the device.

    Returns:
        base.json: `{"fields": {field: {"mean", "low", "high", "majority", "real", "target"}}, "settings"}`.

    Raises:
        ValueError: unknown folder, base model, judge or split.
    """
    check_run(split, steps)
    config = {**load_settings().method("prompt-only").config}
    if guidance_scale is not None:
        config["guidance_scale"] = guidance_scale
    method = Method("full captions", "prompt", config=config)
    described = make_described_people(split, people, prompts, seed)
    folder = None if out is None else make_folder(out)
    reader = load_judge(judge_folder(base, split, judge), device)
    spec = RendererSpec(Path(base), steps, device or "cpu")
    with renderer_cache(spec, [method], folder) as image_cache, WorkerPool(spec, workers) as pool:
        pool.generate(described, [method], image_cache, "generating full captions")
        generated = [image_cache.get(person, method) for person in described]
        real = [person.true_images(image_cache.size_px) for person in described]
    settings = {"people": people, "prompts": prompts, "steps": steps, "split": split, "seed": seed, **config}
    results = {"fields": field_records(described, generated, real, reader, split, device), "settings": settings}
    if folder is not None:
        write_whole(folder / "base.json", json.dumps(results, indent=1, allow_nan=False) + "\n", public=True)
    _print(base_table(results))
    return results


def field_records(
    people: Sequence[Person],
    generated: Sequence[Sequence[Image.Image]],
    real: Sequence[Sequence[Image.Image]],
    judge: Judge,
    split: Split,
    device: str | None = None,
) -> dict[str, dict[str, float | None]]:
    """Return field to accuracy on generated images with interval, on real renders, and of the majority answer."""
    hits, real_hits = read_hits(people, generated, judge, device), read_hits(people, real, judge, device)
    records: dict[str, dict[str, float | None]] = {}
    for field in FIELDS:
        chances = identity_chances(split) if field in IDENTITY_FIELDS else attribute_chances()
        majority = float(np.mean([chances[person.identity.style][field] for person in people]))
        figures = {"majority": majority, "real": float(real_hits[field].mean()), "target": TARGETS.get(field)}
        records[field] = {**interval(hits[field]).record(), **figures}
    return records


def read_hits(
    people: Sequence[Person], images: Sequence[Sequence[Image.Image]], judge: Judge, device: str | None = None
) -> dict[str, np.ndarray]:
    """Return field to the fraction of each person's images in which it is predicted right, (P,)."""
    flat = [image for of_person in images for image in of_person]
    records = iter(read_images(judge, flat, device).records)
    hits: dict[str, list[float]] = {field: [] for field in FIELDS}
    for person in people:
        read = [
            (next(records), {**person.identity.record(), **eval_prompt.attributes.record()})
            for eval_prompt in person.eval_prompts
        ]
        for field in FIELDS:
            hits[field].append(float(np.mean([record[field] == truth[field] for record, truth in read])))
    return {field: np.asarray(values) for field, values in hits.items()}


def base_table(results: Mapping[str, Any]) -> "Table":
    """Return the table of the fields."""
    from rich.table import Table

    settings = results["settings"]
    title = f"base model: {settings['people']} {settings['split']} people, {settings['prompts']} full captions each"
    table = Table("field", title=title, caption="judge's accuracy, 95 % bootstrap interval over people")
    for heading in ("generated", "interval", "target", "majority given style", "real renders"):
        table.add_column(heading, justify="right")
    for field, record in results["fields"].items():
        target = "" if record["target"] is None else f"{record['target']:.2f}"
        others = (f"{record[key]:.3f}" for key in ("majority", "real"))
        table.add_row(field, f"{record['mean']:.3f}", f"{record['low']:.3f} to {record['high']:.3f}", target, *others)
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    Console().print(table)
