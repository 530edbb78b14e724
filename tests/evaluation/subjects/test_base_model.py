import json
from pathlib import Path
from typing import Any

import pytest

from promptnet.datasets.avatars.colours import HAIR_COLOR
from promptnet.datasets.avatars.person import FIELDS
from promptnet.evaluation.harness.chances import identity_chances
from promptnet.evaluation.harness.tasks import make_described_people
from promptnet.evaluation.harness.workers import RendererSpec
from promptnet.evaluation.subjects import base_model as base_evaluation
from promptnet.evaluation.subjects.base_model import evaluate_base

PEOPLE: dict[str, Any] = {"people": 4, "prompts": 2, "workers": 1}


@pytest.fixture(autouse=True)
def fakes(monkeypatch, judge, renderer):
    judge.learn(make_described_people("validation", 4, 2))
    monkeypatch.setattr(base_evaluation, "load_judge", lambda folder, device=None: judge)
    monkeypatch.setattr(RendererSpec, "build", lambda self: renderer)


def wrong_hair_color_of_the_first(person, eval_prompt):
    """Return the truth, but another hair colour for the first person."""
    from dataclasses import replace

    if person.index > 0:
        return person.identity, eval_prompt.attributes
    other = next(color for word, color in HAIR_COLOR.items() if word != person.identity.record()["hair_color"])
    return replace(person.identity, hair_color=other), eval_prompt.attributes


def test_accuracy_is_field_by_field_beside_majority_and_real_renders(base: Path, renderer, tmp_path: Path, capsys):
    renderer.policies["full captions"] = wrong_hair_color_of_the_first
    results = evaluate_base(base, out=tmp_path, **PEOPLE)
    assert list(results["fields"]) == list(FIELDS)
    for field, record in results["fields"].items():
        assert record["mean"] == (0.75 if field == "hair_color" else 1)
        assert record["real"] == 1
    styles = [person.identity.style for person in make_described_people("validation", 4, 2)]
    majority = sum(identity_chances("validation")[style]["skin"] for style in styles) / 4
    assert results["fields"]["skin"]["majority"] == pytest.approx(majority)
    assert results["fields"]["style"]["majority"] == 1
    assert results["fields"]["background"]["majority"] == pytest.approx(1 / len(FIELDS["background"]))
    assert results["fields"]["hair"]["target"] == 0.6
    assert results["fields"]["beard"]["target"] is None
    assert json.loads((tmp_path / "base.json").read_text()) == results
    assert "hair_color" in capsys.readouterr().out


def test_guidance_can_be_chosen(base: Path):
    assert evaluate_base(base, guidance_scale=2.5, **PEOPLE)["settings"]["guidance_scale"] == 2.5


def test_a_missing_folder_raises(base: Path):
    with pytest.raises(ValueError, match="does not exist"):
        evaluate_base(base, out=base / "missing" / "deeper", **PEOPLE)
