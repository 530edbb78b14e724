"""Choose every method's parameters on validation people with the validation judge, and write `settings.yaml`.

The order is: per-user tuning for each encoder (with plain guidance), then each method on its own, from the same grid
and with the same effort, then `best`, which starts from the best of our methods and may leave any part out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import (
    METHODS,
    OURS,
    PUBLISHED,
    SUBJECT_PARAMETERS,
    Encoder,
    Method,
    make_method,
    our_methods,
)
from promptnet.evaluation.harness.renderer_cache import renderer_cache
from promptnet.evaluation.harness.settings import Settings, load_settings, save_settings
from promptnet.evaluation.harness.tasks import Person, make_people
from promptnet.evaluation.harness.workers import RendererSpec, WorkerPool
from promptnet.evaluation.subjects.compare import check_run, present_methods
from promptnet.evaluation.subjects.coordinate_search import Point, coordinate_search
from promptnet.evaluation.subjects.score import Scorer, make_scorer
from promptnet.io.atomic import make_folder, write_whole
from promptnet.metrics.judge import load_judge

GRID: dict[str, tuple[float | int, ...]] = {
    "guidance_scale": (2.0, 3.0, 5.0),
    "fusion_steps": (1, 2),
    "subject_scale": (2.0, 3.0, 5.0),
    "class_scale": (0.5, 2.0),
    "pseudo_word_scale": (0.8, 1.0),
    "fusion_scale": (2.0, 3.0),
    "fusion_end": (0.5, 1.0),
    "guidance_rescale": (0.0, 0.5),
}
"""Parameter to the values tried, in the order of the search. `best` may also omit fusion or the class term."""

CUSTOMIZE_GRID: dict[str, tuple[Any, ...]] = {
    "learning_rate": (5e-4, 1e-3, 2.5e-3, 5e-3),
    "train": (["words"], ["kv"], ["words", "kv"]),
    "steps": (25, 50),
}
"""Arguments of `PromptNetPipeline.customize` to the values tried."""

CUSTOMIZE_START: dict[str, Any] = {
    "learning_rate": 2.5e-3,
    "train": ["words", "kv"],
    "steps": 50,
    "prompts": ["a portrait of S*"],
}

TUNED_PLAIN: dict[Encoder, str] = {OURS: "plain-guidance-tuned", PUBLISHED: "published-plain-guidance-tuned"}
"""The method that an encoder's per-user tuning is chosen with."""


def tune_settings(
    base: str | Path,
    *,
    people: int = 32,
    prompts: int = 2,
    steps: int = 20,
    methods: Sequence[str] | None = None,
    customize: bool = True,
    rounds: int = 2,
    out: str | Path | None = None,
    settings: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> Settings:
    """Choose the parameters of the methods by their harmonic mean on validation people.

    With `out`, it also writes settings.yaml and tried.json there after every choice, and keeps the images in a folder
    of their own: repeat the command to resume after an interruption.

    Args:
        base: folder of the base model; judges and the second encoder lie beside it.
        people: validation people.
        prompts: number of images for each person and setting.
        steps: denoising steps.
        methods: to choose parameters of; None is all methods that the base model has encoders for. The others keep
            those of `settings`.
        customize: also choose how subjects are tuned, for the encoders of these methods.
        rounds: largest number of rounds over all parameters of a method.
        out: a folder, made if it is missing.
        settings: file to start from; None is the shipped one.
        seed: decides people, prompts and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the validation judge beside the base model.
        workers: number of processes; None decides by the device.

    Returns:
        The settings, with the score of every choice.

    Raises:
        ValueError: unknown folder, base model, judge or method.
    """
    check_run("validation", steps)
    start = load_settings(settings)
    present = present_methods(base, start.all_methods(methods), asked=methods is not None)
    names = [method.name for method in present if METHODS[method.name].chooses]
    folder = None if out is None else make_folder(out)
    tasks = make_people("validation", people, prompts, seed)
    reader = load_judge(judge_folder(base, "validation", judge), device)
    spec = RendererSpec(Path(base), steps, device or "cpu", keep=6 * people)
    how = {"people": people, "prompts": prompts, "steps": steps, "seed": seed, "rounds": rounds, "scores": {}}
    with renderer_cache(spec, start.all_methods(names), folder) as image_cache, WorkerPool(spec, workers) as pool:
        trials = Trials(tasks, image_cache, pool, make_scorer(tasks, reader, "validation", image_cache.size_px, device))
        return Chooser(trials, replace(start, chosen=how), folder, rounds).choose_all(names, customize)


@dataclass(frozen=True)
class Trials:
    """Generate and score settings on the same people."""

    people: Sequence[Person]
    image_cache: ImageCache
    pool: WorkerPool
    scorer: Scorer

    def score(self, methods: Sequence[Method], about: str) -> list[float]:
        """Return each method's harmonic mean, averaged over people."""
        self.pool.generate(self.people, methods, self.image_cache, about)
        generated = ([self.image_cache.get(person, method) for person in self.people] for method in methods)
        return [float(self.scorer.score(images).people["harmonic"].mean()) for images in generated]


class Chooser:
    """Choose settings step by step: each choice builds on those before it.

    Args:
        trials: scores settings.
        settings: to start from.
        folder: for settings.yaml and tried.json, written after every choice; None writes nothing.
        rounds: largest number of rounds over all parameters of a method.
    """

    def __init__(self, trials: Trials, settings: Settings, folder: Path | None = None, rounds: int = 2):
        self.trials, self.settings, self.folder, self.rounds = trials, settings, folder, rounds
        self.tried: list[dict[str, Any]] = []

    def choose_all(self, names: Sequence[str], customize: bool = True) -> Settings:
        """Choose per-user tuning for the encoders that these methods use, then the methods, `best` last."""
        for encoder in TUNED_PLAIN if customize else ():
            if any(METHODS[name].tuned and METHODS[name].encoder == encoder for name in names):
                self.choose_customize(encoder)
        for name in names:
            if name != "best":
                self.choose_method(name)
        if "best" in names:
            self.choose_best()
        return self.settings

    def choose_customize(self, encoder: Encoder) -> None:
        """Choose how an encoder's subjects are tuned, generated with plain guidance."""
        name = TUNED_PLAIN[encoder]

        def methods_of(points: Sequence[Point]) -> list[Method]:
            return [replace(self.settings.method(name), customize=point) for point in points]

        start = {**CUSTOMIZE_START, **self.settings.customize.get(encoder, {})}
        # One round, because a trial tunes every person anew, which is slow.
        best, score = self._search(f"customize {encoder}", methods_of, start, CUSTOMIZE_GRID, rounds=1)
        self._keep(f"customize {encoder}", score, customize={**self.settings.customize, encoder: best})

    def choose_method(self, name: str) -> None:
        """Choose one method's parameters."""
        spec = METHODS[name]
        start = {parameter: GRID[parameter][0] for parameter in spec.positive} | dict(
            self.settings.methods.get(name, {})
        )
        grid = {parameter: values for parameter, values in GRID.items() if parameter in spec.chooses}
        self._choose_config(name, start, grid)

    def choose_best(self) -> None:
        """Choose `best` from the best of our methods on, with every parameter free and every part optional."""
        scores = {name: self.settings.chosen["scores"].get(name) for name in our_methods()}
        known = {name: score for name, score in scores.items() if score is not None}
        if not known:
            raise ValueError(f"best starts from the best of {', '.join(our_methods())}: choose one of them with it")
        winner = max(known, key=lambda name: known[name])
        free = {
            parameter: value for parameter, value in SUBJECT_PARAMETERS.items() if parameter in METHODS["best"].chooses
        }
        start = {"tuned": METHODS[winner].tuned, **free, **self.settings.methods[winner]}
        optional = ("fusion_steps", "class_scale")
        grid = {parameter: ((0, *values) if parameter in optional else values) for parameter, values in GRID.items()}
        self._choose_config(
            "best", start, {parameter: grid[parameter] for parameter in grid if parameter in METHODS["best"].chooses}
        )

    def _choose_config(self, name: str, start: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> None:
        def methods_of(points: Sequence[Point]) -> list[Method]:
            return [make_method(name, point, self.settings.customize) for point in points]

        best, score = self._search(name, methods_of, start, grid)
        self._keep(name, score, methods={**self.settings.methods, name: best})

    def _search(
        self,
        about: str,
        methods_of: Callable[[Sequence[Point]], list[Method]],
        start: Mapping[str, Any],
        grid: Mapping[str, Sequence[Any]],
        rounds: int | None = None,
    ) -> tuple[Point, float]:
        def score_all(points: Sequence[Point]) -> list[float]:
            scores = self.trials.score(methods_of(points), about)
            for point, score in zip(points, scores, strict=True):
                self.tried.append({"for": about, **point, "harmonic": round(score, 4)})
            return scores

        return coordinate_search(score_all, start, grid, rounds=rounds or self.rounds)

    def _keep(self, about: str, score: float, **changed: Any) -> None:
        scores = {**self.settings.chosen["scores"], about: round(score, 4)}
        self.settings = replace(self.settings, chosen={**self.settings.chosen, "scores": scores}, **changed)
        if self.folder is not None:
            save_settings(self.settings, self.folder / "settings.yaml")
            write_whole(self.folder / "tried.json", json.dumps(self.tried, indent=1) + "\n", public=True)
        from rich.console import Console

        [value] = changed.values()
        Console().print(f"{about}: {score:.3f} with {value[about.removeprefix('customize ')]}", highlight=False)
