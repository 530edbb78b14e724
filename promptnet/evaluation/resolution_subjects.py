"""Whether a customised subject stays the same person at twice the trained size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from promptnet.evaluation.avatars import studio_gallery
from promptnet.evaluation.bootstrap import difference, interval
from promptnet.evaluation.drawing import picture_size
from promptnet.evaluation.judging import Judge
from promptnet.evaluation.marking import make_marker
from promptnet.evaluation.resolution_rows import Shape, Size, resolution_of
from promptnet.evaluation.rows import Row
from promptnet.evaluation.running import Crew, StudioSpec
from promptnet.evaluation.settings import load_settings
from promptnet.evaluation.tasks import make_people
from promptnet.images.framing import square

TIMES = 2
PROMPTS = 2


def compare_identity(
    spec: StudioSpec, subjects: int, *, seed: int, out: Path | None, judge: Judge, workers: int | None = None
) -> dict[str, Any]:
    """Draw customised validation people with the row `best` at the trained size, and at twice that with `auto`.

    At the larger size, in both ways there are of showing PromptNet the picture in the making (`encoder_input`).

    Args:
        spec: of the studio.
        subjects: how many people, two prompts each.
        seed: decides people, prompts and noise.
        out: where pictures are kept.
        judge: of validation.
        workers: processes that draw.

    Returns:
        `{"people", "size", "trained", "larger", "larger_reference", "kept", "kept_reference"}`: identity, 0 guessing
        and 1 all right, each with its interval, and the larger minus the trained one's, people paired.
    """
    size_px = picture_size(spec.base)
    rows = subject_rows(Shape.of(spec.base), spec.steps)
    people = make_people("validation", subjects, PROMPTS, seed)
    with studio_gallery(spec, rows, out) as gallery, Crew(spec, workers) as crew:
        crew.draw(people, rows, gallery, "drawing subjects")
        pictures = [[gallery.get(person, row) for person in people] for row in rows]
    marker = make_marker(people, judge, "validation", size_px, spec.device)
    trained, larger, reference = (
        marker.mark([[square(picture, size_px) for picture in of_person] for of_person in of_row]).people["identity"]
        for of_row in pictures
    )
    figures = {"trained": interval(trained), "larger": interval(larger), "larger_reference": interval(reference)}
    figures |= {"kept": difference(larger, trained), "kept_reference": difference(reference, trained)}
    side_px = TIMES * size_px
    return {
        "people": subjects,
        "size": f"{side_px}x{side_px}",
        **{name: figure.record() for name, figure in figures.items()},
    }


def subject_rows(shape: Shape, steps: int) -> list[Row]:
    """The row `best` at the trained size, and twice at twice that with the settings of `auto`."""
    best, side_px = load_settings().row("best"), TIMES * shape.trained_px
    drawing: dict[str, Any] = {"width": side_px, "height": side_px}
    drawing["resolution"] = resolution_of("auto", Size(side_px, side_px), shape, steps)
    larger = replace(best, name="best, larger", knobs={**best.knobs, **drawing})
    reference = {**larger.knobs, "encoder_input": "reference"}
    return [best, larger, replace(larger, name="best, larger, reference", knobs=reference)]
