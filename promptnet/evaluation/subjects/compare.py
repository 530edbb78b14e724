"""Compare methods: generate held-out people with each, and score them against the true answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.datasets.avatars.person import World
from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.renderer import has_encoder
from promptnet.evaluation.harness.renderer_cache import renderer_cache
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import SPLITS, Person, Split, make_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool
from promptnet.evaluation.subjects.curves import curve_points, curve_records
from promptnet.evaluation.subjects.exact import ExactScorer
from promptnet.evaluation.subjects.exact_results import summarise_exact
from promptnet.evaluation.subjects.plots import check_matplotlib, save_plot
from promptnet.evaluation.subjects.report import print_results, save_sheet
from promptnet.evaluation.subjects.results import Results, save_results, summarise
from promptnet.evaluation.subjects.score import MethodScores, Scorer, make_scorer
from promptnet.io.atomic import make_folder
from promptnet.metrics.judge import ExactJudge, load_judge

if TYPE_CHECKING:
    from promptnet.models.judge import AvatarJudge


def evaluate_avatars(
    base: str | Path,
    *,
    people: int = 64,
    prompts: int = 4,
    steps: int = 20,
    split: Split = "test",
    world: World = "known",
    frame: str = "plain",
    neutral: bool = False,
    methods: Sequence[str] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    curves: bool = False,
    settings: str | Path | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> Results:
    """Compare methods on people never seen in training, and print the comparison.

    All methods get the same people, prompts and noise. With `out`, it also writes results.json, sheet.png and plot.png
    there, and keeps the images in a folder of their own: repeat the command to resume after an interruption.

    Args:
        base: folder of the base model; judges and the second encoder lie in it or beside it.
        people: held-out people.
        prompts: number of images for each person and method.
        steps: denoising steps.
        split: "test" for results, scored by the test judge; "validation" for choices, scored by the validation judge;
            "train" to measure the gap to people seen in training, scored by the validation judge too.
        world: "known", or people of a style ("style"), with hair drawings ("hair") or with colours ("color") that no
            training had.
        frame: how reference images were made, one of `tasks.FRAMES`.
        neutral: the first prompt of each person names nothing, and its true answer is the reference.
        methods: names of `methods.METHODS`; None is all of them that the base model has encoders for.
        out: a folder, made if it is missing.
        seed: decides people, prompts and noise.
        device: where to generate; None is the CPU.
        curves: also generate the trade-off curves of identity against attributes.
        settings: file of the methods' parameters; None is the one shipped.
        judge: folder of the judge; None is the one in the base model's folder or beside it.
        workers: number of processes; None decides by the device.

    Returns:
        The content of results.json (`results.summarise`).

    Raises:
        ValueError: unknown folder, base model, judge, split, world, frame or method, or nothing but a neutral prompt.
        ModuleNotFoundError: `out` is given and matplotlib is not installed.
    """
    check_run(split, steps, SPLITS)
    if neutral and prompts < 2:
        raise ValueError(f"prompts={prompts}: beside the neutral prompt every person needs 1 that asks for something")
    chosen = present_methods(base, load_settings(settings).all_methods(methods), asked=methods is not None)
    folder = None if out is None else make_folder(out)
    if folder is not None:
        check_matplotlib()
    tasks = make_people(split, people, prompts, seed, world=world, frame=frame, neutral_first=neutral)
    spec = RendererSpec(Path(base), steps, device or "cpu")
    reader = load_judge(judge_folder(base, split, judge), device)
    asked = {"people": people, "prompts": prompts, "steps": steps, "seed": seed}
    asked |= {"split": split, "world": world, "frame": frame, "neutral": neutral}
    with renderer_cache(spec, chosen, folder) as image_cache, WorkerPool(spec, workers) as pool:
        comparison = compare(tasks, chosen, image_cache, pool, reader, split=split, world=world, curves=curves)
        results = comparison.results(asked)
        if folder is not None:
            comparison.save(results, folder)
    print_results(results)
    return results


def present_methods(base: str | Path, methods: Sequence[Method], *, asked: bool) -> list[Method]:
    """Return methods, without those whose encoder a base model lacks if nobody asked for them by name."""
    present = [method for method in methods if asked or has_encoder(base, method)]
    if left := [method.name for method in methods if method not in present]:
        print(f"left out, because the base model has not their encoder: {', '.join(left)}")
    return present


def check_run(split: str, steps: int, splits: Sequence[str] = SPLITS[1:]) -> None:
    """Check the split and the number of steps.

    Args:
        split: of the people.
        steps: number of denoising steps.
        splits: those allowed, by default those of held-out people.

    Raises:
        ValueError: a split that is not allowed, or no denoising steps.
    """
    if split not in splits:
        raise ValueError(f"split={split!r} is not one of the splits that can be scored here: {', '.join(splits)}")
    if steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more")


@dataclass(frozen=True)
class Comparison:
    """All images and scores of a comparison."""

    people: Sequence[Person]
    methods: Sequence[Method]
    image_cache: ImageCache
    scorer: Scorer
    scores: dict[str, MethodScores]
    curves: dict[str, Any]
    exact: dict[str, Any]

    def results(self, settings: dict[str, Any]) -> Results:
        """Return the summary, with the parameters of the methods."""
        config = {method.name: method.record() for method in self.methods}
        settings = {**settings, "weights": dict(self.image_cache.weights), "rows": config}
        return summarise(self.scores, settings, self.curves, self.exact)

    def save(self, results: Results, folder: Path) -> None:
        """Write results.json, sheet.png and plot.png."""
        size_px = self.image_cache.size_px
        references = [person.reference_image(size_px) for person in self.people]
        generated = [method for method in self.methods if method.source != "truth"]
        columns = {
            method.name: [self.image_cache.get(person, method) for person in self.people] for method in generated
        }
        truths = [person.true_images(size_px) for person in self.people]
        save_results(results, folder / "results.json")
        save_sheet(folder / "sheet.png", self.people, references, columns, truths)
        save_plot(results, folder / "plot.png")


def compare(
    people: Sequence[Person],
    methods: Sequence[Method],
    image_cache: ImageCache,
    pool: WorkerPool,
    judge: "AvatarJudge",
    *,
    split: Split,
    world: World = "known",
    curves: bool = False,
) -> Comparison:
    """Generate the images of all methods (and points of curves) for all people and score them."""
    points = curve_points(methods) if curves else []
    everything = [*methods, *(point.method for point in points)]
    pool.generate(people, everything, image_cache)
    scorer = make_scorer(people, judge, split, image_cache.size_px, pool.spec.device, world)
    scores = {
        method.name: scorer.score([image_cache.get(person, method) for person in people]) for method in everything
    }
    named = {method.name: scores[method.name] for method in methods}
    exact = measure_exactly(people, methods, image_cache, judge, pool.spec.device)
    return Comparison(people, methods, image_cache, scorer, named, curve_records(points, scores), exact)


def measure_exactly(
    people: Sequence[Person], methods: Sequence[Method], image_cache: ImageCache, judge: ExactJudge, device: str
) -> dict[str, Any]:
    """Return the exact measures of methods whose images are in the cache."""
    scorer = ExactScorer.of(people, judge, device)

    def images(method: Method) -> list[Image.Image]:
        return [image for person in people for image in image_cache.get(person, method)]

    truth = scorer.score([image for person in people for image in person.true_images(image_cache.size_px)])
    return summarise_exact({method.name: scorer.score(images(method)) for method in methods}, truth, people)
