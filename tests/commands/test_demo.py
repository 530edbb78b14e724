"""The demo with stand-ins for the pipeline and the judge, which knows every avatar that it may meet."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet import cli
from promptnet.commands import _loading
from promptnet.commands import demo as demo_module
from promptnet.commands._demo_sheet import CELL_PX, GENERATED_TOP_PX, TRUE_TOP_PX, demo_sheet, left_of
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS
from promptnet.evaluation.harness.tasks import Person, make_people, make_person
from promptnet.metrics.judge import to_pixels

SIZE_PX = 64


class Judge:
    """Predict the fields of one person's avatars without error."""

    def __init__(self, who: Person) -> None:
        images = [who.reference_image(SIZE_PX), *who.true_images(SIZE_PX)]
        attributes = [who.reference, *(eval_prompt.attributes for eval_prompt in who.eval_prompts)]
        self.known = {
            to_pixels([image]).numpy().tobytes(): {**who.identity.record(), **each.record()}
            for image, each in zip(images, attributes, strict=True)
        }

    def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
        return [self.known[image.contiguous().numpy().tobytes()] for image in pixels]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) + 2


class Pipeline:
    """Return the given images, and record the calls."""

    num_timesteps = 1

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images
        self.shown: list[Image.Image] = []
        self.call: dict[str, Any] = {}

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def customize(self, image: Image.Image, **_: Any) -> Any:
        self.shown.append(image)
        return SimpleNamespace(save=lambda path: Path(path).write_bytes(b"subject"))

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        self.call = {"prompts": prompts, **options}
        return SimpleNamespace(images=self.images)


Setting = Callable[[list[Image.Image]], Pipeline]


@pytest.fixture
def who() -> Person:
    return make_people("test", 1, 5, 0)[0]


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, who: Person) -> Setting:
    """Return a function that installs a pipeline which generates the given images."""

    def install(images: list[Image.Image]) -> Pipeline:
        pipe = Pipeline(images)
        monkeypatch.setattr(_loading, "find_base", lambda base: base)
        monkeypatch.setattr(demo_module, "load_pipeline", lambda *_: pipe)
        monkeypatch.setattr("promptnet.evaluation.harness.renderer.image_size", lambda _: SIZE_PX)
        monkeypatch.setattr("promptnet.evaluation.harness.judges.judge_folder", lambda *_: Path("judge"))
        monkeypatch.setattr("promptnet.metrics.judge.load_judge", lambda *_: Judge(who))
        monkeypatch.chdir(tmp_path)
        return pipe

    return install


def test_the_truth_scores_one(set_up: Setting, who: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = set_up(who.true_images(SIZE_PX))
    assert cli.main(["demo", "--out", "."]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "demo.png", "demo.safetensors"]
    result = json.loads(Path("demo.json").read_text())
    assert (result["identity"], result["attributes"], result["harmonic"], result["pixel_l1"]) == (1, 1, 1, 0)
    assert result["preservation"] == 1
    assert len(result["images"]) == 5
    assert set(result["seconds"]) == {"load", "customise", "draw", "judge"}
    assert who.eval_prompts[0].prompt.split(",")[0] in capsys.readouterr().out
    assert pipe.call["prompts"] == [eval_prompt.prompt for eval_prompt in who.eval_prompts]
    assert len({generator.initial_seed() for generator in pipe.call["generator"]}) == 5


def test_the_folder_is_made_before_anything_is_computed(
    set_up: Setting, who: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = set_up(who.true_images(SIZE_PX))
    existed = []
    monkeypatch.setattr(demo_module, "load_pipeline", lambda *_: (existed.append((tmp_path / "new").is_dir()), pipe)[1])
    assert cli.main(["demo", "--out", "new"]) == 0
    assert existed == [True]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["demo.json", "demo.png", "demo.safetensors"]
    assert cli.main(["demo", "--out", "absent/new"]) != 0
    assert len(pipe.shown) == 1


def test_copying_the_reference_keeps_the_identity_and_follows_no_prompt(set_up: Setting, who: Person) -> None:
    set_up([who.reference_image(SIZE_PX)] * 5)
    assert cli.main(["demo", "--out", ".", "--steps", "3"]) == 0
    result = json.loads(Path("demo.json").read_text())
    assert result["identity"] == 1
    assert result["attributes"] <= 0
    assert result["preservation"] == 1
    for image in result["images"]:
        assert all(image["identity_right"].values())
        assert not any(image["asked_right"].values())
        assert all(image["kept_right"].values())
        assert set(image["asked_right"]) | set(image["kept_right"]) == set(ATTRIBUTE_FIELDS)


def test_people_have_no_end_and_begin_at_zero(set_up: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    far = make_person("test", 10**6, 5)
    assert far == make_person("test", 10**6, 5)
    assert make_person("test", 2, 5) == make_people("test", 3, 5)[2]
    demo_module.check_request(10**6, None)
    set_up([])
    assert cli.main(["demo", "--out", ".", "--person", "-1"]) != 0
    assert "person=-1 must be 0 or more" in capsys.readouterr().err


def test_the_model_gets_the_reference_alone(set_up: Setting, who: Person) -> None:
    pipe = set_up(who.true_images(SIZE_PX))
    cli.main(["demo", "--out", "."])
    (shown,) = pipe.shown
    assert np.array_equal(np.asarray(shown), np.asarray(who.reference_image(SIZE_PX)))


def test_the_sheet_shows_every_image_in_its_place() -> None:
    colours = ["red", "green", "blue", "yellow", "cyan"]
    reference, generated, true = (Image.new("RGB", (64, 64), colour) for colour in colours[:3])
    sheet = demo_sheet(reference, ["a portrait of S*"] * 2, [generated, reference], [true, generated])

    def middle(column: int, top_px: int) -> tuple[int, ...]:
        return sheet.getpixel((left_of(column) + CELL_PX // 2, top_px + CELL_PX // 2))  # type: ignore[return-value]

    red, green, blue = (255, 0, 0), (0, 128, 0), (0, 0, 255)
    assert [middle(column, GENERATED_TOP_PX) for column in range(3)] == [red, green, red]
    assert [middle(column, TRUE_TOP_PX) for column in (1, 2)] == [blue, green]
    assert sheet.width > left_of(2) + CELL_PX
