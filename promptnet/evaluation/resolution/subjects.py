"""Whether a customised subject stays the same person at twice the trained size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.methods import Row
from promptnet.evaluation.harness.renderer import picture_size
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import Crew, StudioSpec
from promptnet.evaluation.resolution.methods import Shape, Size, resolution_of
from promptnet.evaluation.subjects.compare import studio_gallery
from promptnet.evaluation.subjects.score import make_marker
from promptnet.images.crop import square
from promptnet.metrics.bootstrap import difference, interval
from promptnet.metrics.judge import Judge

TIMES = 2
PROMPTS = 2


def compare_identity(
    spec: StudioSpec, subjects: int, *, seed: int, out: Path | None, judge: Judge, workers: int | None = None
) -> dict[str, Any]:
    """Draw customised validation people with the row `best` at the trained size, and at twice that.

    There once with `auto`, and with the network adapted at that size, in both ways there are of showing PromptNet the
    picture in the making (`encoder_input`).

    Args:
        spec: of the studio.
        subjects: how many people, two prompts each.
        seed: decides people, prompts and noise.
        out: where pictures are kept.
        judge: of validation.
        workers: processes that draw.

    Returns:
        `{"people", "size", "trained", "auto", "adapted", "adapted-reference", "... minus trained"}`: identity, 0
        guessing and 1 all right, each with its interval, and each larger one's minus the trained one's, people paired.
    """
    size_px = picture_size(spec.base)
    rows = subject_rows(Shape.of(spec.base), spec.steps)
    people = make_people("validation", subjects, PROMPTS, seed)
    with studio_gallery(spec, rows, out) as gallery, Crew(spec, workers) as crew:
        crew.draw(people, rows, gallery, "drawing subjects")
        pictures = [[gallery.get(person, row) for person in people] for row in rows]
    marker = make_marker(people, judge, "validation", size_px, spec.device)
    trained, *larger = (
        marker.mark([[square(picture, size_px) for picture in of_person] for of_person in of_row]).people["identity"]
        for of_row in pictures
    )
    figures = {"trained": interval(trained)}
    for row, identity in zip(rows[1:], larger, strict=True):
        figures |= {row.name: interval(identity), f"{row.name} minus trained": difference(identity, trained)}
    side_px = TIMES * size_px
    return {
        "people": subjects,
        "size": f"{side_px}x{side_px}",
        **{name: figure.record() for name, figure in figures.items()},
    }


def subject_rows(shape: Shape, steps: int) -> list[Row]:
    """The row `best` at the trained size, and three ways of drawing it at twice that."""
    best, side_px = load_settings().row("best"), TIMES * shape.trained_px

    def larger(name: str, ladder: str, **knobs: Any) -> Row:
        resolution = resolution_of(ladder, Size(side_px, side_px), shape, steps)
        drawing = {"width": side_px, "height": side_px, "resolution": resolution}
        return replace(best, name=name, knobs={**best.knobs, **drawing, **knobs})

    return [
        best,
        larger("auto", "auto"),
        larger("adapted", "adapted"),
        larger("adapted-reference", "adapted", encoder_input="reference"),
    ]
