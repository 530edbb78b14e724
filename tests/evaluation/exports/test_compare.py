"""The comparison of exports, on the embedded model with one untuned person."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptnet.evaluation.exports import compare
from promptnet.evaluation.exports.compare import evaluate_exports, print_results
from promptnet.export.distillation import DistillConfig

BASE = Path(__file__).parents[3] / "checkpoints" / "tiny"


def untuned(renderer: Any, person: Any) -> Any:
    return renderer.ours.encode(person.reference_image(64), class_word="a person")


def test_every_way_is_drawn_and_compared_with_the_exact_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare._Renderer, "subject", untuned)
    config = DistillConfig(steps=1, num_images=2, drawing_steps=1)
    found = evaluate_exports(BASE, people=1, prompts=1, steps=2, split="validation", out=tmp_path, config=config)
    assert list(found["methods"]) == list(compare.METHODS)
    assert found["minus exact"]["stock"]["pixel_l1"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found["minus exact"]["mean"]["pixel_l1"]["mean"] != 0
    assert 0 < abs(found["minus exact"]["table"]["pixel_l1"]["mean"]) < 0.1
    assert found["distillation_s"] > 0
    assert json.loads((tmp_path / "export.json").read_text())["settings"]["people"] == 1
    print_results(found)
    said = capsys.readouterr().out
    assert [method for method in compare.METHODS if method not in said] == []


def test_a_run_resumes_with_the_images_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    size = (64, 64)

    def draw(self: Any, method: compare.Export, person: Any, subject: Any) -> list[Image.Image]:
        calls.append(method.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [Image.new("RGB", size, "red")] * len(person.eval_prompts)

    monkeypatch.setattr(compare._Renderer, "subject", untuned)
    monkeypatch.setattr(compare._Renderer, "_draw", draw)
    how: dict[str, Any] = {"people": 2, "prompts": 1, "steps": 2, "split": "validation", "methods": ["mean"]}
    with pytest.raises(KeyboardInterrupt):
        evaluate_exports(BASE, **how, out=tmp_path)
    evaluate_exports(BASE, **how, out=tmp_path)
    assert calls == ["exact", "mean", "exact", "exact", "mean"]
    evaluate_exports(BASE, **{**how, "steps": 3}, out=tmp_path)
    assert len(calls) == 9


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['gguf'\] are not among defaults, exact"):
        evaluate_exports(BASE, methods=["gguf"])
