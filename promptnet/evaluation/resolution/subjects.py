"""Check that a customised subject keeps its identity at twice the trained size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.renderer import image_size
from promptnet.evaluation.harness.renderer_cache import renderer_cache
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool
from promptnet.evaluation.resolution.methods import Shape, Size, resolution_of
from promptnet.evaluation.subjects.score import make_scorer
from promptnet.images.crop import square
from promptnet.metrics.bootstrap import difference, interval
from promptnet.metrics.judge import Judge

TIMES = 2
PROMPTS = 2


def compare_identity(
    spec: RendererSpec, subjects: int, *, seed: int, out: Path | None, judge: Judge, workers: int | None = None
) -> dict[str, Any]:
    """Generate customised validation people with the method `best` at the trained size, and at twice that.

    At twice the size, `auto` is compared with the network adapted at that size, for both values of `encoder_input`.

    Args:
        spec: of the renderer.
        subjects: number of people, two prompts each.
        seed: decides people, prompts and noise.
        out: folder of the images.
        judge: of validation.
        workers: number of processes.

    Returns:
        `{"people", "size", "trained", "auto", "adapted", "adapted-reference", "... minus trained"}`: identity (0
        is guessing, 1 is all right) with its interval, and its difference from the trained size, people paired.
    """
    size_px = image_size(spec.base)
    methods = subject_methods(Shape.of(spec.base), spec.steps)
    people = make_people("validation", subjects, PROMPTS, seed)
    with renderer_cache(spec, methods, out) as image_cache, WorkerPool(spec, workers) as pool:
        pool.generate(people, methods, image_cache, "generating subjects")
        images = [[image_cache.get(person, method) for person in people] for method in methods]
    scorer = make_scorer(people, judge, "validation", size_px, spec.device)
    trained, *larger = (
        scorer.score([[square(image, size_px) for image in of_person] for of_person in of_method]).people["identity"]
        for of_method in images
    )
    figures = {"trained": interval(trained)}
    for method, identity in zip(methods[1:], larger, strict=True):
        figures |= {method.name: interval(identity), f"{method.name} minus trained": difference(identity, trained)}
    side_px = TIMES * size_px
    return {
        "people": subjects,
        "size": f"{side_px}x{side_px}",
        **{name: figure.record() for name, figure in figures.items()},
    }


def subject_methods(shape: Shape, steps: int) -> list[Method]:
    """Return the method `best` at the trained size, and three methods at twice that."""
    best, side_px = load_settings().method("best"), TIMES * shape.trained_px

    def larger(name: str, ladder: str, **config: Any) -> Method:
        resolution = resolution_of(ladder, Size(side_px, side_px), shape, steps)
        sampling = {"width": side_px, "height": side_px, "resolution": resolution}
        return replace(best, name=name, config={**best.config, **sampling, **config})

    return [
        best,
        larger("auto", "auto"),
        larger("adapted", "adapted"),
        larger("adapted-reference", "adapted", encoder_input="reference"),
    ]
