import json
from pathlib import Path
from typing import Any

import pytest

from promptnet.evaluation.harness.methods import OURS, PUBLISHED, ROWS
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import StudioSpec
from promptnet.evaluation.subjects import tune as tuning
from promptnet.evaluation.subjects.tune import tune_settings

NUM_PEOPLE = 5
FAST: dict[str, Any] = {"people": NUM_PEOPLE, "prompts": 1, "workers": 1, "steps": 1}


class GradedStudio:
    """Gets as many people right as the row's settings earn points; everybody else comes out as a copy."""

    def __init__(self, judge, points):
        self.judge, self.points = judge, points
        self.rows = []

    def __call__(self, person, row):
        self.rows.append(row)
        right = person.index < self.points(row)
        attributes = [ask.attributes if right else person.reference for ask in person.asks]
        return [self.judge.render(person.identity, each) for each in attributes]


@pytest.fixture
def graded(monkeypatch, judge):
    def install(points):
        studio = GradedStudio(judge, points)
        judge.learn(make_people("validation", NUM_PEOPLE, 1))
        monkeypatch.setattr(StudioSpec, "build", lambda self: studio)
        monkeypatch.setattr(tuning, "load_judge", lambda folder, device=None: judge)
        return studio

    return install


def test_each_row_gets_its_own_best_knobs(base: Path, graded, tmp_path: Path):
    def points(row):
        knobs = row.knobs
        if row.source == "prompt":
            return 3 if knobs["guidance_scale"] == 5.0 else 1
        return 1 + (knobs["subject_scale"] == 5.0) + (knobs["class_scale"] == 0.5) + (knobs["fusion_steps"] == 2)

    graded(points)
    rows = ["prompt-only", "plain-guidance", "refinement-only", "profusion", "published-profusion"]
    settings = tune_settings(base, rows=rows, customize=False, out=tmp_path, **FAST)
    assert settings.rows["prompt-only"] == {"guidance_scale": 5.0}
    assert settings.rows["plain-guidance"] == {"subject_scale": 5.0}
    assert settings.rows["refinement-only"] == {"subject_scale": 5.0, "class_scale": 0.5}
    for name in ("profusion", "published-profusion"):
        chosen = settings.rows[name]
        assert (chosen["subject_scale"], chosen["class_scale"], chosen["fusion_steps"]) == (5.0, 0.5, 2)
    expected = {"prompt-only": 3, "plain-guidance": 2, "refinement-only": 3, "profusion": 4, "published-profusion": 4}
    assert settings.chosen["scores"] == {name: round(score / NUM_PEOPLE, 4) for name, score in expected.items()}
    assert settings.rows["fusion-only"] == load_settings().rows["fusion-only"], "a row nobody asked for has changed"
    assert load_settings(tmp_path / "settings.yaml") == settings
    tried = json.loads((tmp_path / "tried.json").read_text())
    assert {"for": "plain-guidance", "subject_scale": 5.0, "harmonic": round(2 / NUM_PEOPLE, 4)} in tried


@pytest.mark.parametrize("fusion_helps", [True, False])
def test_best_may_leave_fusion_and_tuning_out(base: Path, graded, fusion_helps):
    def points(row):
        fused = row.knobs["fusion_steps"] > 0
        return 1 + (not row.tuned) + (fused if fusion_helps else -fused) + (row.knobs["subject_scale"] == 2.0)

    graded(points)
    settings = tune_settings(base, rows=["plain-guidance", "profusion-untuned", "profusion", "best"], **FAST)
    best = settings.row("best")
    assert not best.tuned
    assert (best.knobs["fusion_steps"] > 0) is fusion_helps
    assert best.knobs["subject_scale"] == 2.0
    assert settings.chosen["scores"]["best"] == max(settings.chosen["scores"].values())


def test_tuning_is_chosen_for_each_encoder_and_used_by_its_rows(base: Path, graded):
    wanted = {OURS: {"learning_rate": 1e-3, "steps": 25}, PUBLISHED: {"train": ["kv"], "steps": 25}}

    def points(row):
        return sum(row.customize.get(key) == value for key, value in wanted[row.encoder].items()) if row.tuned else 0

    studio = graded(points)
    settings = tune_settings(base, rows=["plain-guidance-tuned", "published-plain-guidance-tuned"], **FAST)
    for encoder, arguments in wanted.items():
        assert settings.customize[encoder].items() >= arguments.items()
    last = {row.encoder: row for row in studio.rows}
    assert settings.row("plain-guidance-tuned").customize == settings.customize[OURS]
    assert all(last[encoder].customize.items() >= arguments.items() for encoder, arguments in wanted.items())


def test_an_encoder_without_tuned_rows_is_not_tuned(base: Path, graded):
    graded(lambda row: 1)
    settings = tune_settings(base, rows=["plain-guidance"], **FAST)
    assert set(settings.chosen["scores"]) == {"plain-guidance"}
    assert settings.customize == load_settings().customize


def test_repeating_the_command_draws_nothing_again(base: Path, graded, tmp_path: Path):
    studio = graded(lambda row: 2)
    first = tune_settings(base, rows=["refinement-only"], customize=False, out=tmp_path, **FAST)
    drawn = len(studio.rows)
    assert tune_settings(base, rows=["refinement-only"], customize=False, out=tmp_path, **FAST) == first
    assert len(studio.rows) == drawn > 0


def test_best_needs_a_row_to_start_from(base: Path, graded):
    graded(lambda row: 1)
    with pytest.raises(ValueError, match="best starts from the best of plain-guidance, "):
        tune_settings(base, rows=["best"], customize=False, **FAST)


def test_every_row_that_chooses_has_its_knobs_in_the_grid():
    for name, spec in ROWS.items():
        assert set(spec.chooses) <= set(tuning.GRID), name
        assert all(min(tuning.GRID[knob]) > 0 for knob in spec.positive), name
