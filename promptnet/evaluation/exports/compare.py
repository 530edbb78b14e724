"""What exports lose: people never seen in training, drawn by our pipeline and by diffusers' own with the files."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import OURS, Encoder, Method
from promptnet.evaluation.harness.renderer import generator, image_size, weight_hashes
from promptnet.evaluation.harness.tasks import CLASS_PHRASE, PLACEHOLDER, Person, Split, make_people
from promptnet.evaluation.harness.workers import generate_missing
from promptnet.evaluation.method_names import EXPORT_METHODS
from promptnet.evaluation.subjects.compare import check_run
from promptnet.evaluation.subjects.score import METRICS, MethodScores, make_scorer
from promptnet.export.distillation import DistillConfig, distill
from promptnet.export.formats.textual_inversion import token_of
from promptnet.export.passport import Passport
from promptnet.export.registry import FORMATS, write_files
from promptnet.export.static_subject import StaticSubject
from promptnet.export.static_words import mean_static, timed_words
from promptnet.export.stock import in_stock_pipeline
from promptnet.export.stock_words import in_stock_with_words
from promptnet.export.timed import TimedWords
from promptnet.io.atomic import make_folder, write_whole
from promptnet.io.progress import counting_bar
from promptnet.metrics.bootstrap import difference, interval
from promptnet.metrics.judge import load_judge

METHODS = EXPORT_METHODS
EXACT = "exact"


def evaluate_exports(
    base: str | Path,
    *,
    people: int = 32,
    prompts: int = 4,
    steps: int = 20,
    split: Split = "test",
    methods: Sequence[str] = METHODS,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    config: DistillConfig | None = None,
) -> dict[str, Any]:
    """Draw people with every export and score them against the true answers, and against the exact pipeline.

    With `out`, also writes export.json there, and keeps the images in a folder of their own: repeat the command to
    resume after an interruption.

    Args:
        base: folder of the embedded model; judges lie beside it.
        people: held-out people.
        prompts: images of each.
        steps: denoising steps.
        split: "test" for results, "validation" for choices.
        methods: some of `METHODS`; "exact" is always among them.
        out: a folder, made if it is missing.
        seed: decides people, prompts and noise.
        device: where to draw; None is the CPU.
        judge: folder of the judge; None is the one beside the base model.
        config: how subjects are distilled.

    Returns:
        For each method every measure with its interval, and its difference to the exact pipeline, paired.

    Raises:
        ValueError: a method or split is not known, or there is no such folder or judge.
    """
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise ValueError(f"methods {sorted(unknown)} are not among {', '.join(METHODS)}")
    check_run(split, steps)
    folder = None if out is None else make_folder(out)
    config = config or DistillConfig()
    chosen = [Export(method, config) for method in METHODS if method in {*methods, EXACT}]
    who, renderer = make_people(split, people, prompts, seed), _Renderer(str(base), steps, device or "cpu")
    with (
        _image_cache(base, steps, folder) as cache,
        counting_bar("drawing exports", len(who), "people") as done,
    ):
        for person in who:
            generate_missing(renderer, person, chosen, cache)
            done()
        images = {method.name: [cache.get(person, method) for person in who] for method in chosen}
    scorer = make_scorer(who, load_judge(judge_folder(base, split, judge), device), split, image_size(base), device)
    scores = {method: scorer.score(found) for method, found in images.items()}
    results = summarise(scores)
    results["settings"] = {"split": split, "people": people, "prompts": prompts, "steps": steps, "seed": seed}
    results["distillation_s"] = round(float(np.mean(renderer.seconds)), 1) if renderer.seconds else None
    if folder is not None:
        write_whole(folder / "export.json", json.dumps(results, indent=1) + "\n", public=True)
    return results


def summarise(scores: Mapping[str, MethodScores]) -> dict[str, Any]:
    """Every method's measures with intervals over people, and how they differ from the exact pipeline's."""
    exact = scores[EXACT].people
    return {
        "methods": {
            method: {metric: interval(found.people[metric]).record() for metric in METRICS}
            for method, found in scores.items()
        },
        "minus exact": {
            method: {metric: difference(found.people[metric], exact[metric]).record() for metric in METRICS}
            for method, found in scores.items()
            if method != EXACT
        },
    }


def print_results(results: Mapping[str, Any]) -> None:
    """Print the methods' measures, and identity against the exact pipeline."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="exports", caption="95 % bootstrap intervals over people")
    shown = ("identity", "attributes", "distance")
    for name in ("method", *shown, "identity - exact"):
        table.add_column(name)
    for method, found in results["methods"].items():
        against = results["minus exact"].get(method, {}).get("identity")
        cells = [_cell(found[metric]) for metric in shown]
        table.add_row(method, *cells, "-" if against is None else _cell(against))
    Console().print(table)


def _cell(record: Mapping[str, float]) -> str:
    return f"{record['mean']:.2f} ({record['low']:.2f} to {record['high']:.2f})"


@dataclass(frozen=True)
class Export:
    """One of `METHODS`, as the image cache knows methods."""

    name: str
    distilling: DistillConfig
    source: str = "subject"
    encoder: Encoder = OURS
    config: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return everything that decides the images."""
        return {"export": self.name, **(asdict(self.distilling) if self.name == "distilled" else {})}


@contextlib.contextmanager
def _image_cache(base: str | Path, steps: int, folder: Path | None) -> Iterator[ImageCache]:
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else folder
        yield ImageCache(place / "pictures", weight_hashes(base, [Method(EXACT, "subject")]), steps, image_size(base))


@dataclass
class _Renderer:
    """Draws one person in every way, from the same noise."""

    base: str
    steps: int
    device: str
    seconds: list[float] = field(default_factory=list)
    known: tuple[Person, Any] | None = None

    def __post_init__(self) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        from promptnet import PromptNetPipeline

        pipe: Any = PromptNetPipeline.from_pretrained(self.base, use_safetensors=True)
        self.ours = pipe.to(self.device)
        options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
        stock: Any = StableDiffusionPipeline.from_pretrained(self.base, torch_dtype=torch.float32, **options)
        self.stock = stock.to(self.device)
        self.stock.scheduler = self.ours.scheduler
        for each in (self.ours, self.stock):
            each.set_progress_bar_config(disable=True)
        self.scale = self.ours.sampling_defaults.subject_scale

    def __call__(self, person: Person, method: Export) -> list[Image.Image]:
        """Draw one image for each of the person's prompts."""
        if self.known is None or self.known[0] != person:
            self.known = person, self.subject(person)
        return self._draw(method, person, self.known[1])

    def subject(self, person: Person) -> Any:
        """The person, tuned."""
        reference = person.reference_image(self.ours.trained_size_px[0])
        quiet: dict[str, Any] = {"generator": generator(person.seed), "progress_bar": False}
        return self.ours.customize(reference, class_word=CLASS_PHRASE, **quiet)

    def _draw(self, how: Export, person: Person, subject: Any) -> list[Image.Image]:
        method = how.name
        prompts = [each.prompt for each in person.eval_prompts]
        if method in ("defaults", EXACT):
            plain = {} if method == "defaults" else {"class_scale": 0.0, "fusion_steps": 0}
            return self.ours(
                prompts,
                subject=subject,
                num_inference_steps=self.steps,
                generator=[generator(each.seed) for each in person.eval_prompts],
                **plain,
            ).images
        if method == "stock":
            return [self._in_stock(subject, each) for each in person.eval_prompts]
        if method == "table":
            words = timed_words(self.ours, subject)
            return [self._with_table(words, each) for each in person.eval_prompts]
        static = self._distilled(subject, how.distilling) if method == "distilled" else mean_static(self.ours, subject)
        return self._with_files(static, person, with_lora=method != "words")

    def _in_stock(self, subject: Any, asked: Any) -> Image.Image:
        with in_stock_pipeline(
            self.stock,
            subject,
            asked.prompt,
            promptnet=self.ours.promptnet,
            subject_scale=self.scale,
            num_inference_steps=self.steps,
            generator=generator(asked.seed),
        ) as arguments:
            return self.stock(**arguments).images[0]

    def _with_table(self, words: TimedWords, asked: Any) -> Image.Image:
        with in_stock_with_words(
            self.stock, words, asked.prompt, num_inference_steps=self.steps, guidance_scale=self.scale
        ) as arguments:
            return self.stock(**arguments, generator=generator(asked.seed)).images[0]

    def _distilled(self, subject: Any, config: DistillConfig) -> StaticSubject:
        import time

        start_s = time.perf_counter()
        found = distill(self.ours, subject, config)
        self.seconds.append(time.perf_counter() - start_s)
        return found

    def _with_files(self, static: StaticSubject, person: Person, *, with_lora: bool) -> list[Image.Image]:
        """As a user of diffusers draws: files written, loaded, and taken out again."""
        with tempfile.TemporaryDirectory() as passing:
            names = ["kohya"] if with_lora and static.loras else []
            paths = write_files(static, names, Path(passing), f"p{person.index}", Passport({}))
            words = paths["textual-inversion"]
            FORMATS["textual-inversion"].readers["diffusers"](self.stock, words)
            if names:
                FORMATS["kohya"].readers["diffusers"](self.stock, paths["kohya"])
            try:
                return self.stock(
                    [each.prompt.replace(PLACEHOLDER, token_of(words)) for each in person.eval_prompts],
                    num_inference_steps=self.steps,
                    guidance_scale=self.scale,
                    generator=[generator(each.seed) for each in person.eval_prompts],
                ).images
            finally:
                self.stock.unload_textual_inversion()
                if names:
                    self.stock.unload_lora_weights()
