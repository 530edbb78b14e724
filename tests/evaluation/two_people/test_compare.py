"""The command on pairs: what it draws with, what it scores, and that it resumes."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from promptnet.evaluation.two_people import compare
from promptnet.metrics.judge import Prediction


class Drawing:
    """A pipeline that paints who it was asked for: the first one's half red, the second's blue."""

    trained_size_px = (8, 8)

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def customize(self, image: Any, **options: Any) -> str:
        return f"subject {len(self.calls)}"

    def __call__(self, prompt: str, **options: Any) -> Any:
        self.calls.append({"prompt": prompt, **options})
        image = Image.new("RGB", (options["width"], options["height"]), "red")
        if options.get("regions"):
            image.paste("blue", (8, 0, 16, 8))
        return SimpleNamespace(images=[image])


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Drawing:
    drawing = Drawing()
    monkeypatch.setattr(compare._Maker, "pipe", drawing)
    monkeypatch.setattr(compare, "load_judge", lambda *_: None)
    monkeypatch.setattr(compare, "judge_folder", lambda *_: None)
    monkeypatch.setattr(compare, "weight_hashes", lambda *_: {})
    people = compare.pairs_of("validation", 2)

    def read(judge: Any, images: list[Image.Image]) -> Prediction:
        order = {(255, 0, 0): 0, (0, 0, 255): 1}
        index = min(len(drawing.calls) // 5, 1) if drawing.calls else 0
        pair = [person.identity.record() for person in people[index]]
        return Prediction([pair[order[image.getpixel((0, 0))]] for image in images], None)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "read_images", read)
    return drawing


def test_regions_keep_two_apart_that_one_prompt_makes_one(drawing, tmp_path):
    results = compare.evaluate_two_people("base", pairs=1, steps=3, split="validation", out=tmp_path)
    calls = drawing.calls
    assert [call["prompt"] for call in calls] == [compare.PROMPT] * 2 + [compare.ALONE] * 2
    assert [call.get("regions") for call in calls] == ["halves", None, None, None]
    assert (calls[0]["width"], calls[0]["height"], calls[2]["width"]) == (16, 8, 8)
    assert results["regions"]["identity"]["mean"] == 1
    assert results["regions"]["blended"]["mean"] == 0
    assert results["one prompt"]["blended"]["mean"] == 0.5  # the second is wholly the first
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "| regions | 1.000" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "sheet.png").is_file()


def test_repeating_the_command_draws_only_what_is_missing(drawing, tmp_path):
    compare.evaluate_two_people("base", pairs=1, steps=3, split="validation", out=tmp_path)
    drawing.calls.clear()
    compare.evaluate_two_people("base", pairs=1, steps=3, split="validation", out=tmp_path)
    assert not drawing.calls


def test_nobody_is_in_two_pairs():
    everyone = [person.index for pair in compare.pairs_of("validation", 5) for person in pair]
    assert sorted(everyone) == list(range(10))
