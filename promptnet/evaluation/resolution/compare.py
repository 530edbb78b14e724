"""Compare methods of generating at sizes that the model was not trained for, against real renders."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.renderer_cache import renderer_cache
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import Person, make_described_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool
from promptnet.evaluation.resolution.methods import SIZES, TRAINED, Shape, Size, make_methods, method_at
from promptnet.evaluation.resolution.report import print_sizes, save_size_sheet
from promptnet.evaluation.resolution.score import FEWEST, SizeScorer, SizeScores, real_images
from promptnet.evaluation.resolution.subjects import compare_identity
from promptnet.evaluation.subjects.compare import check_run
from promptnet.io.atomic import make_folder, write_whole
from promptnet.metrics.bootstrap import Interval
from promptnet.metrics.head_count import HeadFinder
from promptnet.metrics.judge import load_judge

Results = dict[str, Any]
MUST_WIN = ("32x32", "128x128")
"""Sizes at which `auto` must be better than direct inference beyond the interval."""
IDENTITY_LOSS = 0.05
"""Allowed loss of a subject's identity at the larger size."""


def evaluate_resolution(
    base: str | Path,
    *,
    people: int = 96,
    steps: int = 20,
    sizes: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    subjects: int = 0,
    guidance_scale: float | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> Results:
    """Generate full captions of validation people at other sizes with every method, and print the comparison.

    With `out`, it also writes results.json and a sheet a size there, and keeps the images in a folder of their own:
    repeat the command to resume after an interruption.

    Args:
        base: folder of the base model; the validation judge lies beside it.
        people: validation people, one caption each.
        steps: denoising steps.
        sizes: WIDTHxHEIGHT, or WIDTHxHEIGHT:IMAGES for fewer; None is `SIZES`. Below 8 images, nothing is measured.
        methods: of `LADDER`, or settings ("published:...", YAML files); None is the ladder.
        subjects: number of customised people to generate at the trained size and at twice that.
        guidance_scale: of the captions; None is that of the method `prompt-only`.
        out: a folder, made if it is missing.
        seed: decides people, captions and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the one beside the base model.
        workers: number of processes; None decides by the device.

    Returns:
        results.json: `{"sizes": {size: {"pictures", "rows": {method: {measure: {"mean", "low", "high"}}},
        "auto_gains", "settings"}}, "subjects", "claims", "settings"}`.

    Raises:
        ValueError: unknown folder, base model, judge or method; an impossible size.
    """
    check_run("validation", steps)
    wanted = [Size.parse(text) for text in (SIZES if sizes is None else sizes)]
    folder = None if out is None else make_folder(out)
    config = {**load_settings().method("prompt-only").config}
    if guidance_scale is not None:
        config["guidance_scale"] = guidance_scale
    shape, described = Shape.of(base), make_described_people("validation", people, 1, seed)
    by_size = {size: make_methods(methods, size, shape, steps, config) for size in wanted}
    own = method_at(TRAINED, "off", Size(shape.trained_px, shape.trained_px), config)
    reader = load_judge(judge_folder(base, "validation", judge), device)
    spec = RendererSpec(Path(base), steps, device or "cpu")
    with renderer_cache(spec, [own], folder) as image_cache, WorkerPool(spec, workers) as pool:
        pool.generate(described, [own], image_cache, "generating at the trained size")
        run = Run(described, own, image_cache, pool, reader, HeadFinder.of(reader), folder, device)
        measured = {size.name: run.measure(size, of_size) for size, of_size in by_size.items()}
        weights = dict(image_cache.weights)
    results: Results = {"sizes": {name: found for name, found in measured.items() if found}}
    if subjects:
        results["subjects"] = compare_identity(spec, subjects, seed=seed, out=folder, judge=reader, workers=workers)
    settings = {"people": people, "steps": steps, "seed": seed, "judge": "validation", "weights": weights, **config}
    results |= {"claims": checks(results), "settings": settings}
    if folder is not None:
        write_whole(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n", public=True)
    print_sizes(results)
    return results


@dataclass(frozen=True)
class Run:
    """What all sizes share."""

    people: Sequence[Person]
    own: Method
    image_cache: ImageCache
    pool: WorkerPool
    judge: Any
    heads: HeadFinder
    folder: Path | None
    device: str | None

    def measure(self, size: Size, methods: Sequence[Method]) -> dict[str, Any] | None:
        """Generate and score one size with every method; None if there are too few images to measure."""
        people = self.people[: size.count]
        self.pool.generate(people, methods, self.image_cache, f"generating {size.name}")
        generated = {method.name: self._images(people, method) for method in methods}
        own = self._images(people, self.own)
        real = real_images(people, (size.width, size.height))
        if self.folder is not None:
            columns = {"real": real, TRAINED: own, **generated}
            prompts = [person.eval_prompts[0].prompt for person in people]
            save_size_sheet(self.folder / f"sheet-{size.name}.png", columns, prompts)
        if len(people) < FEWEST:
            return None
        scorer = SizeScorer.of(people, (size.width, size.height), own, self.judge, self.heads, self.device)
        scores = {name: scorer.score(images) for name, images in {"real": real, TRAINED: own, **generated}.items()}
        return {
            "pictures": len(people),
            "rows": {name: scorer.record(found) for name, found in scores.items()},
            "auto_gains": auto_gains(scorer, {name: scores[name] for name in generated}),
            "settings": {method.name: json.loads(json.dumps(method.config["resolution"])) for method in methods},
        }

    def _images(self, people: Sequence[Person], method: Method) -> list[Image.Image]:
        return [image for person in people for image in self.image_cache.get(person, method)]


def auto_gains(scorer: SizeScorer, scores: Mapping[str, SizeScores]) -> dict[str, dict[str, dict[str, float]]]:
    """Return by how much `auto` is better than each other method, by measure, prompts paired."""
    if "auto" not in scores:
        return {}
    gains: Callable[[str], dict[str, Interval]] = lambda name: scorer.gains(scores["auto"], scores[name])  # noqa: E731
    return {
        name: {measure: figure.record() for measure, figure in gains(name).items()} for name in scores if name != "auto"
    }


def checks(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the checks of `auto` and of subjects."""
    found = []
    for name, size in results["sizes"].items():
        gains = size["auto_gains"]
        if not gains:
            continue
        losses = {
            f"{measure}, auto against {method}": figure
            for method, figures in gains.items()
            for measure, figure in figures.items()
            if figure["high"] < 0
        }
        found.append(_check_of(f"{name}: no method is better than auto beyond the interval", not losses, losses))
        if name in MUST_WIN and "direct" in gains:
            won = {measure: gains["direct"][measure] for measure in ("kid_r", "kid_b", "attributes")}
            holds = all(figure["low"] > 0 for figure in won.values())
            found.append(_check_of(f"{name}: auto is better than direct inference beyond the interval", holds, won))
    if "subjects" in results:
        subjects = results["subjects"]
        says = f"a subject's identity at {subjects['size']} is within {IDENTITY_LOSS} of that at the trained size"
        figures = {name: figure for name, figure in subjects.items() if name.endswith("minus trained")}
        found.append(_check_of(says, figures["auto minus trained"]["mean"] >= -IDENTITY_LOSS, figures))
    return found


def _check_of(says: str, holds: bool, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"says": says, "holds": holds, "figures": dict(figures)}
