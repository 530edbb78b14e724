"""Evaluate edits: learn each once, then score it on new seeds, on inverted real renders, and on subjects."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.datasets.avatars.person import World
from promptnet.evaluation.edits.cards import (
    DDIM,
    CardTask,
    Learning,
    card_name,
    card_path,
    given_cards,
    hashes_behind,
    learn_cards,
    learning_seconds,
    teaching,
)
from promptnet.evaluation.edits.generate import EditRendererSpec
from promptnet.evaluation.edits.measured import save_measured
from promptnet.evaluation.edits.methods import (
    EIGHT,
    LEARNED,
    LEDITS,
    METHODS,
    ORIGINAL,
    EditMethod,
    check_methods,
    fixed_weights,
    make_edit_methods,
)
from promptnet.evaluation.edits.report import print_edit_results, save_edit_sheet
from promptnet.evaluation.edits.results import summarise_edits
from promptnet.evaluation.edits.score import EditScorer, EditScores, make_scorer
from promptnet.evaluation.edits.tasks import NEUTRAL, Edit, Group, Source, chosen_edits, make_groups
from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import OURS
from promptnet.evaluation.harness.renderer import encoder_folder, image_size, weight_hashes
from promptnet.evaluation.harness.tasks import Split
from promptnet.evaluation.harness.workers import WorkerPool, default_workers
from promptnet.evaluation.subjects.compare import check_run
from promptnet.evaluation.subjects.results import save_results
from promptnet.inference.editing.card import EditCard
from promptnet.inference.editing.inversion import scheduler_class
from promptnet.io.atomic import make_folder
from promptnet.metrics.judge import Judge, load_judge

ITEM_MS = 17.0
"""Milliseconds for one U-Net item of the embedded model in one process on two shared cores, for the estimate."""
LEARNING_FACTOR = 3.5
"""Cost of a learning step in sampling steps: forward, recomputed forward, and backward."""


@dataclass(frozen=True)
class Images:
    """Number of images that an edit is scored on, by source, and learned on."""

    seeds: int = 64
    renders: int = 32
    subjects: int = 0
    learned_on: int = 8

    def groups(self, split: Split, seed: int, world: World, frame: str) -> dict[Source, list[Group]]:
        """Return source to groups, for the sources with images."""
        counts: dict[Source, int] = {"seeds": self.seeds, "renders": self.renders, "subjects": self.subjects}
        made: dict[Source, list[Group]] = {
            source: make_groups(source, split, count, seed, world=world, frame=frame)
            for source, count in counts.items()
        }
        return {source: groups for source, groups in made.items() if groups}


def evaluate_edits(
    base: str | Path,
    *,
    edits: list[str] | None = None,
    methods: list[str] | None = None,
    images: Images | None = None,
    how: Learning | None = None,
    correction_end: float = 1.0,
    split: Split = "test",
    world: World = "known",
    frame: str = "plain",
    out: str | Path | None = None,
    cards: str | Path | None = None,
    learned: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Learn edits, generate images with every method, score them with a judge, and print the comparison.

    With `out`, it also writes results.json and sheet.png there, and keeps cards and images in folders of their own:
    repeat the command to resume after an interruption.

    Args:
        base: folder of the base model; judges lie beside it.
        edits: names of `edits.tasks.EDITS`; None is all.
        methods: names of `edits.methods.METHODS`; None is all.
        images: number of images of each source; None takes the defaults of `Images`.
        how: config of learning; None takes the defaults of `Learning`.
        correction_end: fraction of the steps in which inverted images are corrected.
        split: "test" for results, scored by the test judge; "validation" for choices, scored by the validation judge.
        world: what renders and subjects are drawn from: "known", or "style", "hair" or "color" that no training had.
        frame: how renders and references of subjects are framed, one of `promptnet.evaluation.harness.tasks.FRAMES`.
        out: a folder, made if it is missing.
        cards: a folder, made if it is missing, for the cards learned on several seeds, named after the edits, with
            what was measured of them.
        learned: folder of such cards, to score in place of learning some.
        seed: decides images and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the one beside the base model.
        workers: processes; None decides by the device.

    Returns:
        The content of results.json (`edits.results.summarise_edits`).

    Raises:
        ValueError: unknown folder, base model, judge, split, world, frame, edit or method.
    """
    images, how = images or Images(), how or Learning()
    check_run(split, how.num_steps)
    scheduler_class(how.scheduler)
    chosen, names = chosen_edits(edits), check_methods(methods)
    folder = None if out is None else make_folder(out)
    ready = None if cards is None else make_folder(cards)
    read_by = judge_folder(base, split, judge)
    reader, size_px = load_judge(read_by, device), image_size(base)
    groups = images.groups(split, seed, world, frame)
    workers = default_workers(device or "cpu") if workers is None else workers
    given = {} if learned is None else given_cards(Path(learned), chosen, how)
    print(estimate(len(chosen), names, images, how, workers, given))
    spec = EditRendererSpec(
        Path(base), how.num_steps, device or "cpu", guidance_scale=how.guidance_scale, scheduler=how.scheduler
    )
    hashes = hashes_of(base, with_encoder=bool(images.subjects))
    with cache_folder(folder) as place:
        tasks = card_tasks(spec, chosen, names, images.learned_on, how, place, given)
        made = all_cards(tasks, workers, given)
        edit_methods = make_edit_methods(names, chosen, made, correction_end)
        image_cache = ImageCache(place / "pictures", hashes, how.num_steps, size_px)
        with WorkerPool(spec, workers) as pool:
            table = Table(groups, edit_methods, image_cache, how.guidance_scale, how.scheduler)
            table.generate(pool)
        scores = table.scores(reader, size_px, device)
        settings: dict[str, Any] = {"split": split, "seed": seed, "pictures": asdict(images), "how": asdict(how)}
        settings |= {"world": world, "frame": frame, "taught_by": teaching(how)}
        settings |= {"correction_end": correction_end, "weights": weights_record(made), "base": hashes}
        settings["judge"] = {"name": read_by.resolve().name, "hash": weight_hashes(read_by, [])["base"]}
        settings["learning_s"] = seconds_record(tasks)
        results = summarise_edits(scores, settings)
        if folder is not None:
            save_results(results, folder / "results.json")
            save_edit_sheet(folder / "sheet.png", names, table.lines(scores))
        if ready is not None:
            for edit in chosen:
                save_measured(made[EIGHT, edit.name], ready / card_name(edit), edit, scores, world, frame)
    print_edit_results(results)
    return results


def estimate(
    num_edits: int, methods: Sequence[str], images: Images, how: Learning, workers: int, given: Collection[str] = ()
) -> str:
    """Return the estimated cost on CPUs: two U-Net items an image and step with guidance, one for inversion."""
    steps = how.num_steps
    learned_on = sum({EIGHT: images.learned_on}.get(method, 1) for method in learned_methods(methods, given))
    learning = num_edits * learned_on * 2 * steps * how.iterations * LEARNING_FACTOR
    edit_methods = num_edits * len([method for method in methods if method != LEDITS])
    seeds = images.seeds * 2 * steps * (edit_methods + 1)
    renders = images.renders * steps * (2 * edit_methods + 3)
    baseline = 2 * (images.seeds + images.renders) * 4 * steps * (LEDITS in methods)
    items = int(learning + seeds + renders + baseline)
    minutes = items * ITEM_MS / 1000 / 60 / workers
    share = learning / max(items, 1)
    text = f"{items} U-Net items, {share:.0%} of them learning: {minutes:.0f} minutes in {workers} processes"
    return f"{text} at {ITEM_MS:g} ms an item{', subjects apart' if images.subjects else ''}"


def learned_methods(methods: Sequence[str], given: Collection[str] = ()) -> list[str]:
    """Return the methods to learn cards for: the one on several seeds always, as others are made of it, or never."""
    found = dict.fromkeys([EIGHT, *(method for method in methods if method in LEARNED)])
    return [method for method in found if not (given and method == EIGHT)]


def hashes_of(base: str | Path, *, with_encoder: bool) -> dict[str, str]:
    """Return the hashes of the base model and of the encoder of the subjects."""
    found = weight_hashes(base, [])
    if with_encoder:
        found[OURS] = weight_hashes(encoder_folder(base, OURS), [])["base"]
    return found


def seconds_record(tasks: Mapping[tuple[str, str], CardTask]) -> dict[str, float]:
    """Return how long cards took to learn, by method and edit, where that is known."""
    found = {f"{method}/{edit}": learning_seconds(task) for (method, edit), task in tasks.items()}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def weights_record(cards: Mapping[tuple[str, str], EditCard]) -> dict[str, list[float]]:
    """Return the weights as results.json holds them, by method and edit."""
    return {f"{method}/{edit}": [round(w, 4) for w in card.weights.tolist()] for (method, edit), card in cards.items()}


@contextlib.contextmanager
def cache_folder(folder: Path | None) -> Iterator[Path]:
    """Yield the folder of cards and images: the output folder, or a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as passing:
        yield Path(passing)


def card_tasks(
    spec: EditRendererSpec,
    edits: Sequence[Edit],
    methods: Sequence[str],
    learned_on: int,
    how: Learning,
    folder: Path,
    given: Collection[str] = (),
) -> dict[tuple[str, str], CardTask]:
    """Return (method, edit) to the card that is to be learned; `given` cards, on several seeds, are not."""
    place = folder / "cards"
    place.mkdir(exist_ok=True)
    hashes, tasks = hashes_behind(spec.base, how), {}
    for edit in edits:
        for method in learned_methods(methods, given):
            num_seeds = learned_on if method == EIGHT else 1
            path = card_path(place, hashes, edit, num_seeds, how)
            tasks[method, edit.name] = CardTask(spec.base, spec.device, edit, num_seeds, how, path)
    return tasks


def all_cards(
    tasks: Mapping[tuple[str, str], CardTask], workers: int, given: Mapping[str, EditCard] | None = None
) -> dict[tuple[str, str], EditCard]:
    """Return (method, edit) to its card; methods that learn nothing take a learned card with other weights.

    Args:
        tasks: what is to be learned.
        workers: processes.
        given: cards learned on several seeds before, by edit.
    """
    cards = dict(zip(tasks, learn_cards(list(tasks.values()), workers), strict=True))
    cards |= {(EIGHT, edit): card for edit, card in (given or {}).items()}
    for method in METHODS:
        if method not in (*LEARNED, LEDITS):
            cards |= {
                (method, edit): replace(card, weights=fixed_weights(method, card.num_steps))
                for (learned, edit), card in list(cards.items())
                if learned == EIGHT
            }
    return cards


@dataclass(frozen=True)
class Table:
    """All images, and how each is generated.

    Args:
        groups: source to its images.
        edit_methods: every method for every edit.
        image_cache: where images are stored.
        guidance_scale: of unedited images.
        scheduler: of unedited images.
    """

    groups: Mapping[Source, Sequence[Group]]
    edit_methods: Sequence[EditMethod]
    image_cache: ImageCache
    guidance_scale: float
    scheduler: str = DDIM
    original: EditMethod = field(init=False)

    def __post_init__(self) -> None:
        how: dict[str, Any] = {"guidance_scale": self.guidance_scale, "scheduler": self.scheduler}
        object.__setattr__(self, "original", EditMethod(ORIGINAL, "original", **how))

    def edit_methods_of(self, source: Source) -> list[EditMethod]:
        """Return the methods of a source: subjects are edited by the card learned without them, and by nothing else."""
        return [edit_method for edit_method in self.edit_methods if source != "subjects" or edit_method.name == EIGHT]

    def generate(self, pool: WorkerPool) -> None:
        """Generate the images that the image cache lacks."""
        for source, groups in self.groups.items():
            generated = [
                as_cached(source, edit_method) for edit_method in (self.original, *self.edit_methods_of(source))
            ]
            pool.generate(groups, generated, self.image_cache, f"generating {source}", counting="groups")

    def images(self, source: Source, edit_method: EditMethod) -> list[Image.Image]:
        """Return all images of one source and method."""
        cached = as_cached(source, edit_method)
        return [image for group in self.groups[source] for image in self.image_cache.get(group, cached)]

    def scores(self, judge: Judge, size_px: int, device: str | None) -> dict[str, dict[str, dict[str, EditScores]]]:
        """Return the scores: source to method to edit."""
        found: dict[str, dict[str, dict[str, EditScores]]] = {}
        for source, groups in self.groups.items():
            unedited = self.images(source, self.original)
            scorer: EditScorer = make_scorer(source, groups, unedited, judge, size_px, device)
            methods = found.setdefault(source, {ORIGINAL: {"": scorer.score(None, unedited)}})
            for edit_method in self.edit_methods_of(source):
                assert edit_method.edit is not None
                scored = scorer.score(edit_method.edit, self.images(source, edit_method))
                methods.setdefault(edit_method.name, {})[edit_method.edit.name] = scored
        return found

    def lines(self, scores: Mapping[str, Any]) -> list[tuple[str, dict[str, Image.Image | None]]]:
        """Return the lines of the contact sheet: for each source and edit, the first image without the attribute."""
        lines = []
        for source, groups in self.groups.items():
            edits = {
                edit_method.edit.name: edit_method.edit
                for edit_method in self.edit_methods_of(source)
                if edit_method.edit is not None
            }
            for name, edit in edits.items():
                edit_methods = [edit_method for edit_method in self.edit_methods_of(source) if edit_method.edit == edit]
                place = int(scores[source][edit_methods[0].name][name].asked.argmax())
                tiles = {edit_method.name: self.images(source, edit_method)[place] for edit_method in edit_methods}
                tiles["unedited"] = self.images(source, self.original)[place]
                if source == "renders":
                    truths = [image for group in groups for image in group.renders(self.image_cache.size_px, edit)]
                    tiles["truth"] = truths[place]
                lines.append((f"{source}: {NEUTRAL} -> {edit.name}", tiles))
        return lines


def as_cached(source: Source, edit_method: EditMethod) -> EditMethod:
    """Return a method as the image cache identifies it: images of subjects depend on the encoder as well."""
    return replace(edit_method, source="subject", encoder=OURS) if source == "subjects" else edit_method
