import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptnet.evaluation.harness.methods import METHODS
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.harness.workers import RendererSpec
from promptnet.evaluation.subjects import compare as avatars
from promptnet.evaluation.subjects.compare import evaluate_avatars
from promptnet.evaluation.subjects.curves import CURVES

PEOPLE: dict[str, Any] = {"people": 3, "prompts": 2, "workers": 1}


@pytest.fixture
def loaded(monkeypatch, judge, renderer):
    """Record which judges were loaded, by folder, with fakes in place of model and judge."""
    folders = []

    def load(folder, device=None):
        folders.append(folder.name)
        for split in ("test", "validation"):
            judge.learn(make_people(split, 3, 2))
        return judge

    monkeypatch.setattr(avatars, "load_judge", load)
    monkeypatch.setattr(RendererSpec, "build", lambda self: renderer)
    return folders


def test_all_methods_by_name_with_exact_scores(base: Path, loaded, capsys):
    results = evaluate_avatars(base, **PEOPLE)
    assert list(results["rows"]) == list(METHODS)
    for name, method in results["rows"].items():
        assert method["identity"]["mean"] == 1 or name == "prompt-only"
        assert method["attributes"]["mean"] == 1 or name == "plain-guidance"
        assert method["harmonic"]["mean"] == (0 if name in ("prompt-only", "plain-guidance") else 1)
        assert (method["distance"]["mean"] < 1e-6) is (name not in ("prompt-only", "plain-guidance"))
    assert results["claims"]["near-the-ceiling"]["holds"] is True
    assert results["claims"]["fusion-pays"]["holds"] is False
    assert "3 test people, 2 prompts, 20 steps" in capsys.readouterr().out


def test_each_split_has_its_own_judge(base: Path, loaded):
    evaluate_avatars(base, methods=["ceiling"], **PEOPLE)
    evaluate_avatars(base, methods=["ceiling"], split="validation", **PEOPLE)
    assert loaded == ["test", "validation"]


def test_an_output_folder_gets_results_sheet_and_plot(base: Path, loaded, renderer, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    results = evaluate_avatars(base, methods=["plain-guidance", "ceiling"], out=out, **PEOPLE)
    assert json.loads((out / "results.json").read_text()) == results
    assert results["settings"]["rows"]["plain-guidance"]["knobs"]["fusion_steps"] == 0
    for name in ("sheet.png", "plot.png"):
        with Image.open(out / name) as image:
            assert image.format == "PNG"
    assert sorted(path.name for path in out.iterdir()) == ["pictures", "plot.png", "results.json", "sheet.png"]
    assert len(renderer.generated) == 6
    assert evaluate_avatars(base, methods=["plain-guidance", "ceiling"], out=out, **PEOPLE) == results
    assert len(renderer.generated) == 6, "generated again although nothing changed"


def test_curves_vary_one_parameter_each(base: Path, loaded):
    results = evaluate_avatars(base, methods=["profusion", "ceiling"], curves=True, **PEOPLE)
    assert list(results["rows"]) == ["profusion", "ceiling"]
    assert set(results["curves"]) == {f"profusion/{parameter}" for parameter in CURVES}
    for curve in results["curves"].values():
        assert [point["value"] for point in curve["points"]] == list(CURVES[curve["knob"]])
        assert all(point["identity"]["mean"] == 1 for point in curve["points"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tests"}, "split='tests' is not one of the splits that can be scored here: train, validation, test"),
        ({"methods": ["fast"]}, "no method 'fast'"),
        ({"people": 1000}, "people=1000"),
        ({"prompts": 0}, "prompts=0"),
        ({"steps": 0}, "steps=0"),
        ({"out": "missing/deeper"}, "'missing' does not exist"),
        ({"judge": "missing"}, "no judge at 'missing'"),
    ],
)
def test_invalid_arguments_raise_before_generating(base: Path, loaded, renderer, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_avatars(base, **{**PEOPLE, **options})
    assert renderer.generated == []


def test_a_folder_without_a_base_model_raises(base: Path, loaded):
    with pytest.raises(ValueError, match="not the folder of a base model"):
        evaluate_avatars(base.parent / "judges", judge=base.parent / "judges" / "test", methods=["ceiling"], **PEOPLE)


def test_a_missing_second_encoder_is_named(base: Path, loaded):
    (base / "promptnet-published" / "config.json").unlink()
    with pytest.raises(ValueError, match="no encoder 'promptnet-published': leave its methods out"):
        evaluate_avatars(base, **PEOPLE)
    evaluate_avatars(base, methods=["profusion", "ceiling"], **PEOPLE)
