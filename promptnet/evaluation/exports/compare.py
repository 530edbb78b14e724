"""What exports lose: people never seen in training, drawn by our pipeline and by diffusers' own with the files."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptnet.datasets.avatars.render import Split
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.renderer import generator, image_size
from promptnet.evaluation.harness.tasks import CLASS_PHRASE, PLACEHOLDER, Person, make_people
from promptnet.evaluation.subjects.compare import check_run
from promptnet.evaluation.subjects.score import METRICS, MethodScores, make_scorer
from promptnet.export.distillation import DistillConfig, distill
from promptnet.export.formats.textual_inversion import token_of
from promptnet.export.passport import Passport
from promptnet.export.registry import FORMATS, write_files
from promptnet.export.static_subject import StaticSubject
from promptnet.export.static_words import mean_static
from promptnet.export.stock import in_stock_pipeline
from promptnet.io.atomic import check_folder, write_whole
from promptnet.io.progress import counting_bar
from promptnet.metrics.bootstrap import difference, interval
from promptnet.metrics.judge import load_judge

METHODS = ("defaults", "exact", "stock", "distilled", "mean", "words")
"""Our pipeline with its defaults and with plain guidance; `in_stock_pipeline`; kohya with textual-inversion, distilled
and with mean words; textual-inversion alone, mean words."""
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

    With `out`, also writes export.json there.

    Args:
        base: folder of the embedded model; judges lie beside it.
        people: held-out people.
        prompts: images of each.
        steps: denoising steps.
        split: "test" for results, "validation" for choices.
        methods: some of `METHODS`; "exact" is always among them.
        out: an existing folder.
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
    folder = None if out is None else check_folder(out)
    chosen = [method for method in METHODS if method in {*methods, EXACT}]
    who, renderer = make_people(split, people, prompts, seed), _Renderer(str(base), steps, device or "cpu", config)
    images: dict[str, list[list[Image.Image]]] = {method: [] for method in chosen}
    with counting_bar("drawing exports", len(who), "people") as advance:
        for person in who:
            for method, drawn in renderer(person, chosen).items():
                images[method].append(drawn)
            advance()
    scorer = make_scorer(who, load_judge(judge_folder(base, split, judge), device), split, image_size(base), device)
    scores = {method: scorer.score(images[method]) for method in chosen}
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


@dataclass
class _Renderer:
    """Draws one person in every way, from the same noise."""

    base: str
    steps: int
    device: str
    config: DistillConfig | None
    seconds: list[float] = field(default_factory=list)

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

    def __call__(self, person: Person, methods: Sequence[str]) -> dict[str, list[Image.Image]]:
        subject = self.subject(person)
        return {method: self._draw(method, person, subject) for method in methods}

    def subject(self, person: Person) -> Any:
        """The person, tuned."""
        reference = person.reference_image(self.ours.trained_size_px[0])
        quiet: dict[str, Any] = {"generator": generator(person.seed), "progress_bar": False}
        return self.ours.customize(reference, class_word=CLASS_PHRASE, **quiet)

    def _draw(self, method: str, person: Person, subject: Any) -> list[Image.Image]:
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
        static = self._distilled(subject) if method == "distilled" else mean_static(self.ours, subject)
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

    def _distilled(self, subject: Any) -> StaticSubject:
        import time

        start_s = time.perf_counter()
        found = distill(self.ours, subject, self.config)
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
