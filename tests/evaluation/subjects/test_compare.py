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
from promptnet.evaluation.subjects.exact import ERRORS, SHARES

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
        ({"people": 0}, "people=0"),
        ({"frame": "fisheye"}, "frame='fisheye'"),
        ({"world": "moon"}, "world='moon'"),
        ({"split": "train", "world": "hair"}, "held out of training"),
        ({"neutral": True, "prompts": 1}, "beside the neutral prompt"),
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


def test_methods_without_their_encoder_are_left_out_unless_asked_for(base: Path, loaded, capsys):
    (base / "promptnet-published" / "config.json").unlink()
    with pytest.raises(ValueError, match="no encoder 'promptnet-published': leave its methods out"):
        evaluate_avatars(base, methods=["published-profusion"], **PEOPLE)
    results = evaluate_avatars(base, **PEOPLE)
    assert list(results["rows"]) == [name for name in METHODS if not name.startswith("published")]
    assert "left out, because the base model has not their encoder: published-plain" in capsys.readouterr().out


def test_exact_measures_stand_beside_the_others(base: Path, loaded):
    exact = evaluate_avatars(base, **PEOPLE)["exact"]
    assert list(exact["methods"]) == list(METHODS)
    best, copy, stranger = (exact["methods"][name] for name in ("best", "plain-guidance", "prompt-only"))
    assert all(best[name]["mean"] == pytest.approx(1) for name in SHARES)
    assert all(best[name]["mean"] == pytest.approx(0, abs=1e-3) for name in ERRORS)
    assert best["way"]["error_skin"]["mean"] == pytest.approx(1, abs=1e-3)
    assert (copy["identity"]["mean"], copy["preservation"]["mean"], copy["attributes"]["mean"]) == (1, 1, 0)
    assert stranger["identity"]["mean"] == pytest.approx(0.2), "the style alone"
    assert stranger["error_hair_color"]["mean"] > 5
    assert stranger["way"]["shape"]["mean"] == pytest.approx(0, abs=1e-6)
    assert sum(group["people"] for group in best["skin"].values()) == 3
    difference = exact["differences"]["plain-guidance-tuned - plain-guidance"]
    assert difference["attributes"]["mean"] == 1
    assert difference["identity"] == {"mean": 0, "low": 0, "high": 0}


def test_the_way_is_known_with_the_prompt_alone_only(base: Path, loaded):
    exact = evaluate_avatars(base, methods=["best", "ceiling"], **PEOPLE)["exact"]
    assert exact["methods"]["best"]["harmonic"] is None
    assert set(exact["methods"]["best"]["way"].values()) == {None}
    assert exact["methods"]["best"]["error_skin"]["mean"] == pytest.approx(0, abs=1e-3)
    assert exact["differences"] == {}


def test_world_frame_and_a_neutral_prompt(base: Path, loaded, judge, renderer):
    tasks = make_people("test", 3, 2, world="style", neutral_first=True)
    judge.learn(tasks)
    asked = {"world": "style", "frame": "zoom-1.4", "neutral": True}
    results = evaluate_avatars(base, methods=["prompt-only", "best", "ceiling"], **asked, **PEOPLE)
    assert asked.items() <= results["settings"].items()
    assert {person.identity.style for person in renderer.seen} == {"adventurer"}
    assert {person.frame.zoom for person in renderer.seen} == {1.4}
    assert all(person.eval_prompts[0].prompt == "a portrait of S*" for person in renderer.seen)
    assert results["exact"]["methods"]["best"]["attributes"]["mean"] == 1
