import json
from pathlib import Path
from typing import Any

import pytest

from promptnet.evaluation.harness.methods import METHODS, OURS, PUBLISHED
from promptnet.evaluation.harness.settings import load_settings
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import RendererSpec
from promptnet.evaluation.subjects import tune as tuning
from promptnet.evaluation.subjects.tune import tune_settings

NUM_PEOPLE = 5
FAST: dict[str, Any] = {"people": NUM_PEOPLE, "prompts": 1, "workers": 1, "steps": 1}


class GradedRenderer:
    """Generate as many people right as the method's settings earn points; copy the reference for all others."""

    def __init__(self, judge, points):
        self.judge, self.points = judge, points
        self.methods = []

    def __call__(self, person, method):
        self.methods.append(method)
        right = person.index < self.points(method)
        attributes = [eval_prompt.attributes if right else person.reference for eval_prompt in person.eval_prompts]
        return [self.judge.render(person.identity, each) for each in attributes]


@pytest.fixture
def graded(monkeypatch, judge):
    def install(points):
        renderer = GradedRenderer(judge, points)
        judge.learn(make_people("validation", NUM_PEOPLE, 1))
        monkeypatch.setattr(RendererSpec, "build", lambda self: renderer)
        monkeypatch.setattr(tuning, "load_judge", lambda folder, device=None: judge)
        return renderer

    return install


def test_each_method_gets_its_own_best_parameters(base: Path, graded, tmp_path: Path):
    def points(method):
        config = method.config
        if method.source == "prompt":
            return 3 if config["guidance_scale"] == 5.0 else 1
        return 1 + (config["subject_scale"] == 5.0) + (config["class_scale"] == 0.5) + (config["fusion_steps"] == 2)

    graded(points)
    methods = ["prompt-only", "plain-guidance", "refinement-only", "profusion", "published-profusion"]
    settings = tune_settings(base, methods=methods, customize=False, out=tmp_path, **FAST)
    assert settings.methods["prompt-only"] == {"guidance_scale": 5.0}
    assert settings.methods["plain-guidance"] == {"subject_scale": 5.0}
    assert settings.methods["refinement-only"] == {"subject_scale": 5.0, "class_scale": 0.5}
    for name in ("profusion", "published-profusion"):
        chosen = settings.methods[name]
        assert (chosen["subject_scale"], chosen["class_scale"], chosen["fusion_steps"]) == (5.0, 0.5, 2)
    expected = {"prompt-only": 3, "plain-guidance": 2, "refinement-only": 3, "profusion": 4, "published-profusion": 4}
    assert settings.chosen["scores"] == {name: round(score / NUM_PEOPLE, 4) for name, score in expected.items()}
    assert settings.methods["fusion-only"] == load_settings().methods["fusion-only"], "another method has changed"
    assert load_settings(tmp_path / "settings.yaml") == settings
    tried = json.loads((tmp_path / "tried.json").read_text())
    assert {"for": "plain-guidance", "subject_scale": 5.0, "harmonic": round(2 / NUM_PEOPLE, 4)} in tried


@pytest.mark.parametrize("fusion_helps", [True, False])
def test_best_may_leave_fusion_and_tuning_out(base: Path, graded, fusion_helps):
    def points(method):
        fused = method.config["fusion_steps"] > 0
        return 1 + (not method.tuned) + (fused if fusion_helps else -fused) + (method.config["subject_scale"] == 2.0)

    graded(points)
    settings = tune_settings(base, methods=["plain-guidance", "profusion-untuned", "profusion", "best"], **FAST)
    best = settings.method("best")
    assert not best.tuned
    assert (best.config["fusion_steps"] > 0) is fusion_helps
    assert best.config["subject_scale"] == 2.0
    assert settings.chosen["scores"]["best"] == max(settings.chosen["scores"].values())


def test_tuning_is_chosen_for_each_encoder_and_used_by_its_methods(base: Path, graded):
    wanted = {OURS: {"learning_rate": 1e-3, "steps": 25}, PUBLISHED: {"train": ["kv"], "steps": 25}}

    def points(method):
        return (
            sum(method.customize.get(key) == value for key, value in wanted[method.encoder].items())
            if method.tuned
            else 0
        )

    renderer = graded(points)
    settings = tune_settings(base, methods=["plain-guidance-tuned", "published-plain-guidance-tuned"], **FAST)
    for encoder, arguments in wanted.items():
        assert settings.customize[encoder].items() >= arguments.items()
    last = {method.encoder: method for method in renderer.methods}
    assert settings.method("plain-guidance-tuned").customize == settings.customize[OURS]
    assert all(last[encoder].customize.items() >= arguments.items() for encoder, arguments in wanted.items())


def test_an_encoder_without_tuned_methods_is_not_tuned(base: Path, graded):
    graded(lambda method: 1)
    settings = tune_settings(base, methods=["plain-guidance"], **FAST)
    assert set(settings.chosen["scores"]) == {"plain-guidance"}
    assert settings.customize == load_settings().customize


def test_repeating_the_command_generates_nothing_again(base: Path, graded, tmp_path: Path):
    renderer = graded(lambda method: 2)
    first = tune_settings(base, methods=["refinement-only"], customize=False, out=tmp_path, **FAST)
    generated = len(renderer.methods)
    assert tune_settings(base, methods=["refinement-only"], customize=False, out=tmp_path, **FAST) == first
    assert len(renderer.methods) == generated > 0


def test_best_needs_a_method_to_start_from(base: Path, graded):
    graded(lambda method: 1)
    with pytest.raises(ValueError, match="best starts from the best of plain-guidance, "):
        tune_settings(base, methods=["best"], customize=False, **FAST)


def test_every_chosen_parameter_is_in_the_grid():
    for name, spec in METHODS.items():
        assert set(spec.chooses) <= set(tuning.GRID), name
        assert all(min(tuning.GRID[parameter]) > 0 for parameter in spec.positive), name
