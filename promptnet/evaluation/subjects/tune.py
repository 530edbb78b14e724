"""Choosing every row's knobs on validation people, read by the validation judge: what `settings.yaml` says.

The order: per-user tuning for each encoder (drawn with plain guidance), then each row on its own, from the same grid
and with the same effort, then `best`, which starts from the best of our rows and may leave any part out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptnet.evaluation.harness.image_cache import Gallery
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.methods import OURS, PUBLISHED, ROWS, SUBJECT_KNOBS, Encoder, Row, make_row, our_rows
from promptnet.evaluation.harness.settings import Settings, load_settings, save_settings
from promptnet.evaluation.harness.tasks import Person, make_people
from promptnet.evaluation.harness.workers import Crew, StudioSpec
from promptnet.evaluation.subjects.compare import check_run, studio_gallery
from promptnet.evaluation.subjects.coordinate_search import Point, coordinate_search
from promptnet.evaluation.subjects.score import Marker, make_marker
from promptnet.io.files import check_folder, write_text
from promptnet.metrics.judge import load_judge

GRID: dict[str, tuple[float | int, ...]] = {
    "guidance_scale": (2.0, 3.0, 5.0),
    "fusion_steps": (1, 2),
    "subject_scale": (2.0, 3.0, 5.0),
    "class_scale": (0.5, 2.0),
    "pseudo_word_scale": (0.8, 1.0),
    "fusion_scale": (2.0, 3.0),
    "fusion_until": (0.5, 1.0),
    "guidance_rescale": (0.0, 0.5),
}
"""Knob to the values tried, in the order in which they are searched. `best` may also leave fusion or class term out."""

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
"""The row by which an encoder's per-user tuning is chosen."""


def tune_settings(
    base: str | Path,
    *,
    people: int = 32,
    prompts: int = 2,
    steps: int = 20,
    rows: Sequence[str] | None = None,
    customize: bool = True,
    rounds: int = 2,
    out: str | Path | None = None,
    settings: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    workers: int | None = None,
) -> Settings:
    """Choose the knobs of the rows by their harmonic mean on validation people.

    With `out`, also writes settings.yaml and tried.json there after every choice, and keeps the pictures in a folder
    `pictures`: repeat the command to go on after an interruption.

    Args:
        base: folder of the base model; judges and the second encoder lie beside it.
        people: validation people.
        prompts: pictures a person and setting.
        steps: denoising steps.
        rows: whose knobs to choose; None is all rows. The others keep what `settings` says.
        customize: also choose how subjects are tuned, for the encoders of these rows.
        rounds: over all knobs of a row, at most.
        out: an existing folder.
        settings: where to start; None is the file shipped.
        seed: decides people, prompts and noise.
        device: where to draw; None is the CPU.
        judge: folder of the judge; None is the validation judge beside the base model.
        workers: processes that draw; None decides by the device.

    Returns:
        The settings, with what every choice scored.

    Raises:
        ValueError: no such folder, base model, judge or row; too many people.
    """
    check_run("validation", steps)
    start = load_settings(settings)
    names = [row.name for row in start.all_rows(rows) if ROWS[row.name].chooses]
    folder = None if out is None else check_folder(out)
    asked = make_people("validation", people, prompts, seed)
    reader = load_judge(judge_folder(base, "validation", judge), device)
    spec = StudioSpec(Path(base), steps, device or "cpu", keep=6 * people)
    how = {"people": people, "prompts": prompts, "steps": steps, "seed": seed, "rounds": rounds, "scores": {}}
    with studio_gallery(spec, start.all_rows(names), folder) as gallery, Crew(spec, workers) as crew:
        trials = Trials(asked, gallery, crew, make_marker(asked, reader, "validation", gallery.size_px, device))
        return Chooser(trials, replace(start, chosen=how), folder, rounds).choose_all(names, customize)


@dataclass(frozen=True)
class Trials:
    """Draws settings for the same people and scores them."""

    people: Sequence[Person]
    gallery: Gallery
    crew: Crew
    marker: Marker

    def score(self, rows: Sequence[Row], about: str) -> list[float]:
        """Each row's harmonic mean, averaged over people."""
        self.crew.draw(self.people, rows, self.gallery, about)
        drawn = ([self.gallery.get(person, row) for person in self.people] for row in rows)
        return [float(self.marker.mark(pictures).people["harmonic"].mean()) for pictures in drawn]


class Chooser:
    """Settings in the making: each choice stands on those before it.

    Args:
        trials: how settings are scored.
        settings: to start from.
        folder: for settings.yaml and tried.json, written after every choice; None writes nothing.
        rounds: over all knobs of a row, at most.
    """

    def __init__(self, trials: Trials, settings: Settings, folder: Path | None = None, rounds: int = 2):
        self.trials, self.settings, self.folder, self.rounds = trials, settings, folder, rounds
        self.tried: list[dict[str, Any]] = []

    def choose_all(self, names: Sequence[str], customize: bool = True) -> Settings:
        """Choose per-user tuning for the encoders that these rows use, then the rows, `best` last."""
        for encoder in TUNED_PLAIN if customize else ():
            if any(ROWS[name].tuned and ROWS[name].encoder == encoder for name in names):
                self.choose_customize(encoder)
        for name in names:
            if name != "best":
                self.choose_row(name)
        if "best" in names:
            self.choose_best()
        return self.settings

    def choose_customize(self, encoder: Encoder) -> None:
        """Choose how an encoder's subjects are tuned, drawn with plain guidance."""
        name = TUNED_PLAIN[encoder]

        def rows_of(points: Sequence[Point]) -> list[Row]:
            return [replace(self.settings.row(name), customize=point) for point in points]

        start = {**CUSTOMIZE_START, **self.settings.customize.get(encoder, {})}
        # One round: a trial tunes every person anew, which is the slow part.
        best, score = self._search(f"customize {encoder}", rows_of, start, CUSTOMIZE_GRID, rounds=1)
        self._keep(f"customize {encoder}", score, customize={**self.settings.customize, encoder: best})

    def choose_row(self, name: str) -> None:
        """Choose one row's knobs."""
        spec = ROWS[name]
        start = {knob: GRID[knob][0] for knob in spec.positive} | dict(self.settings.rows.get(name, {}))
        grid = {knob: values for knob, values in GRID.items() if knob in spec.chooses}
        self._choose_knobs(name, start, grid)

    def choose_best(self) -> None:
        """Choose `best`: from the best of our rows on, with every knob free and every part free to leave out."""
        scores = {name: self.settings.chosen["scores"].get(name) for name in our_rows()}
        known = {name: score for name, score in scores.items() if score is not None}
        if not known:
            raise ValueError(f"best starts from the best of {', '.join(our_rows())}: choose one of them with it")
        winner = max(known, key=lambda name: known[name])
        free = {knob: value for knob, value in SUBJECT_KNOBS.items() if knob in ROWS["best"].chooses}
        start = {"tuned": ROWS[winner].tuned, **free, **self.settings.rows[winner]}
        optional = ("fusion_steps", "class_scale")
        grid = {knob: ((0, *values) if knob in optional else values) for knob, values in GRID.items()}
        self._choose_knobs("best", start, {knob: grid[knob] for knob in grid if knob in ROWS["best"].chooses})

    def _choose_knobs(self, name: str, start: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> None:
        def rows_of(points: Sequence[Point]) -> list[Row]:
            return [make_row(name, point, self.settings.customize) for point in points]

        best, score = self._search(name, rows_of, start, grid)
        self._keep(name, score, rows={**self.settings.rows, name: best})

    def _search(
        self,
        about: str,
        rows_of: Callable[[Sequence[Point]], list[Row]],
        start: Mapping[str, Any],
        grid: Mapping[str, Sequence[Any]],
        rounds: int | None = None,
    ) -> tuple[Point, float]:
        def score_all(points: Sequence[Point]) -> list[float]:
            scores = self.trials.score(rows_of(points), about)
            for point, score in zip(points, scores, strict=True):
                self.tried.append({"for": about, **point, "harmonic": round(score, 4)})
            return scores

        return coordinate_search(score_all, start, grid, rounds=rounds or self.rounds)

    def _keep(self, about: str, score: float, **changed: Any) -> None:
        scores = {**self.settings.chosen["scores"], about: round(score, 4)}
        self.settings = replace(self.settings, chosen={**self.settings.chosen, "scores": scores}, **changed)
        if self.folder is not None:
            save_settings(self.settings, self.folder / "settings.yaml")
            write_text(self.folder / "tried.json", json.dumps(self.tried, indent=1) + "\n")
        from rich.console import Console

        [value] = changed.values()
        Console().print(f"{about}: {score:.3f} with {value[about.removeprefix('customize ')]}", highlight=False)
