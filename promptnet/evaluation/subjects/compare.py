"""The comparison: held-out people drawn in every way, judged against the true answers."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptnet.datasets.avatars.render import SPLITS, Split
from promptnet.evaluation.harness.image_cache import Gallery
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import Row
from promptnet.evaluation.harness.renderer import picture_size, weight_hashes
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import Person, make_people
from promptnet.evaluation.harness.workers import Crew, StudioSpec
from promptnet.evaluation.subjects.curves import curve_points, curve_records
from promptnet.evaluation.subjects.plots import check_matplotlib, save_plot
from promptnet.evaluation.subjects.report import print_results, save_sheet
from promptnet.evaluation.subjects.results import Results, save_results, summarise
from promptnet.evaluation.subjects.score import Marker, RowScores, make_marker
from promptnet.io.files import check_folder
from promptnet.metrics.judge import Judge, load_judge


def evaluate_avatars(
    base: str | Path,
    *,
    people: int = 64,
    prompts: int = 4,
    steps: int = 20,
    split: Split = "test",
    rows: Sequence[str] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    curves: bool = False,
    settings: str | Path | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> Results:
    """Compare ways of drawing people never seen in training, and print the comparison.

    All rows draw the same people, prompts and noise. With `out`, also writes results.json, sheet.png and plot.png
    there, and keeps the pictures in a folder `pictures`: repeat the command to go on after an interruption.

    Args:
        base: folder of the base model; judges and the second encoder lie beside it.
        people: held-out people.
        prompts: pictures a person and row.
        steps: denoising steps.
        split: "test" for results, read by the test judge; "validation" for choices, read by the validation judge;
            "train" for how much worse people are drawn whom training did not see, read by the validation judge too.
        rows: names of `rows.ROWS`; None is all of them.
        out: an existing folder.
        seed: decides people, prompts and noise.
        device: where to draw; None is the CPU.
        curves: also draw the trade-off curves of identity against attributes.
        settings: file of the rows' knobs; None is the one shipped.
        judge: folder of the judge; None is the one beside the base model.
        workers: processes that draw; None decides by the device.

    Returns:
        What results.json holds (`results.summarise`).

    Raises:
        ValueError: no such folder, base model, judge, split or row; too many people.
        ModuleNotFoundError: with `out`, and matplotlib is not installed.
    """
    check_run(split, steps, SPLITS)
    chosen = load_settings(settings).all_rows(rows)
    folder = None if out is None else check_folder(out)
    if folder is not None:
        check_matplotlib()
    asked = make_people(split, people, prompts, seed)
    spec = StudioSpec(Path(base), steps, device or "cpu")
    reader = load_judge(judge_folder(base, split, judge), device)
    with studio_gallery(spec, chosen, folder) as gallery, Crew(spec, workers) as crew:
        comparison = compare(asked, chosen, gallery, crew, reader, split=split, curves=curves)
        results = comparison.results(
            {"split": split, "people": people, "prompts": prompts, "steps": steps, "seed": seed}
        )
        if folder is not None:
            comparison.save(results, folder)
    print_results(results)
    return results


def check_run(split: str, steps: int, splits: Sequence[str] = SPLITS[1:]) -> None:
    """Refuse what no evaluation can run with.

    Args:
        split: whose people are drawn.
        steps: of denoising.
        splits: which make sense; people are held out unless a caller says otherwise.

    Raises:
        ValueError: another split, or no denoising steps.
    """
    if split not in splits:
        raise ValueError(f"split={split!r} is not one of the splits that can be read here: {', '.join(splits)}")
    if steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more")


@contextlib.contextmanager
def studio_gallery(spec: StudioSpec, rows: Sequence[Row], folder: Path | None) -> Iterator[Gallery]:
    """Where pictures are kept: in the output folder, or nowhere for long."""
    size_px, weights = picture_size(spec.base), weight_hashes(spec.base, rows)
    if folder is not None:
        yield Gallery(folder / "pictures", weights, spec.steps, size_px)
        return
    with tempfile.TemporaryDirectory() as passing:
        yield Gallery(Path(passing), weights, spec.steps, size_px)


@dataclass(frozen=True)
class Comparison:
    """Everything drawn and scored."""

    people: Sequence[Person]
    rows: Sequence[Row]
    gallery: Gallery
    marker: Marker
    scores: dict[str, RowScores]
    curves: dict[str, Any]

    def results(self, settings: dict[str, Any]) -> Results:
        """Summarised, with what the rows drew with."""
        knobs = {row.name: row.record() for row in self.rows}
        return summarise(self.scores, {**settings, "weights": dict(self.gallery.weights), "rows": knobs}, self.curves)

    def save(self, results: Results, folder: Path) -> None:
        """Write results.json, sheet.png and plot.png."""
        size_px = self.gallery.size_px
        references = [person.reference_image(size_px) for person in self.people]
        drawn = [row for row in self.rows if row.source != "truth"]
        columns = {row.name: [self.gallery.get(person, row) for person in self.people] for row in drawn}
        truths = [person.true_images(size_px) for person in self.people]
        save_results(results, folder / "results.json")
        save_sheet(folder / "sheet.png", self.people, references, columns, truths)
        save_plot(results, folder / "plot.png")


def compare(
    people: Sequence[Person],
    rows: Sequence[Row],
    gallery: Gallery,
    crew: Crew,
    judge: Judge,
    *,
    split: Split,
    curves: bool = False,
) -> Comparison:
    """Draw all rows (and points of curves) for all people and let the judge read them."""
    points = curve_points(rows) if curves else []
    everything = [*rows, *(point.row for point in points)]
    crew.draw(people, everything, gallery)
    marker = make_marker(people, judge, split, gallery.size_px, crew.spec.device)
    scores = {row.name: marker.mark([gallery.get(person, row) for person in people]) for row in everything}
    named = {row.name: scores[row.name] for row in rows}
    return Comparison(people, rows, gallery, marker, named, curve_records(points, scores))
