"""Measures on people without end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from rich.console import Console

from promptnet.datasets.avatars.person import COLOR_FIELDS, FIELDS
from promptnet.datasets.avatars.render import render_avatar
from promptnet.datasets.avatars.vectors import NUM_EXACT, codes_of, exact_of
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.people.compare import evaluate_people
from promptnet.evaluation.subjects.exact import FRACTIONS, harmonic, score, share_of_way
from promptnet.evaluation.subjects.exact_report import print_people
from promptnet.evaluation.subjects.exact_results import summarise
from promptnet.metrics.color_difference import ciede2000
from promptnet.models.judge import AvatarJudge, JudgeReading
from promptnet.models.promptnet import PromptNetModel
from promptnet.training.pretrain.stage import write_index
from tests.people_base import write_people_base


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # Sharma, Wu, Dalal 2005, table 1: pairs 1, 4, 7, 15, 17, 20, 25, 34
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, -0.0010, 2.4900), (50.0, 0.0011, -2.4900), 4.7461),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000_is_the_published_one(first: Any, second: Any, expected: float):
    assert ciede2000(first, second) == pytest.approx(expected, abs=1e-4)
    assert ciede2000(second, first) == pytest.approx(expected, abs=1e-4)


class _PerfectJudge:
    """Reads from an image what its record says, by looking the image up."""

    def __init__(self, avatars: list[Any]) -> None:
        self.known = {np.asarray(render_avatar(avatar, 64)).tobytes(): avatar for avatar in avatars}

    def look(self, pixels: torch.Tensor) -> JudgeReading:
        arrays = ((pixels + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()
        found = [self.known[np.ascontiguousarray(array).tobytes()] for array in arrays]
        codes = torch.stack([codes_of(avatar.record()) for avatar in found])
        words = {f: torch.eye(len(FIELDS[f]))[codes[:, place]] for place, f in enumerate(FIELDS)}
        shapes = torch.tensor([[hash(avatar.identity.geometry) % 97, 50.0] for avatar in found])
        exact = torch.stack([exact_of(avatar) for avatar in found])
        return JudgeReading(words, exact, torch.nn.functional.normalize(shapes, dim=1))


def test_a_perfect_image_has_full_shares_and_no_error_and_another_person_has_not():
    people = make_people("validation", 8, 2, 3, neutral_first=True)
    truths = [truth for person in people for truth in person.truths()]
    judge = _PerfectJudge(truths)
    images = [render_avatar(truth, 64) for truth in truths]
    perfect = score(images, people, judge)
    assert all(np.nanmin(perfect[name]) == 1.0 for name in FRACTIONS)
    assert max(perfect[f"error_{field}"].max() for field in COLOR_FIELDS) < 1e-3
    assert perfect["shape"].max() < 1e-5
    others = score(images[2:] + images[:2], people, judge)
    assert np.nanmean(others["identity"]) < 0.7
    assert others["error_skin"].mean() > 3
    results = summarise({"prompt": others, "truth": perfect}, 2, [person.identity.skin for person in people])
    assert results["methods"]["truth"]["way"]["error_skin"]["mean"] == pytest.approx(1.0)
    assert results["methods"]["prompt"]["way"]["error_skin"]["mean"] == pytest.approx(0.0)
    assert sum(group["people"] for group in results["methods"]["truth"]["skin"].values()) == 8


def test_half_of_the_error_is_half_of_the_way():
    nothing, truth = np.array([4.0, 6.0]), np.array([0.0, 0.0])
    half = share_of_way(np.array([2.0, 3.0]), nothing, truth)
    assert half is not None
    assert half["mean"] == pytest.approx(0.5)
    assert share_of_way(truth, truth, nothing) is None


def test_the_harmonic_mean_counts_attributes_and_everything_of_a_person():
    names = ("error_skin", "error_hair_color", "shape", "geometry")
    nothing, truth = ({name: np.full(1, value) for name in names} for value in (1.0, 0.0))
    method = {name: np.full(1, 0.5) for name in names} | {"identity": np.ones(1), "attributes": np.ones(1)}
    everything = (1 + 4 * 0.5) / 5
    assert harmonic(method, nothing, truth) == pytest.approx(2 * everything / (everything + 1))
    assert harmonic({**method, "attributes": np.zeros(1)}, nothing, truth) == 0
    worse = {name: np.full(1, 9.0) for name in names} | {"identity": np.zeros(1), "attributes": np.zeros(1)}
    assert harmonic(worse, nothing, truth) == 0


def test_a_measure_that_applies_to_nobody_is_none():
    people = make_people("validation", 3, 1, neutral_first=True)
    truths = [truth for person in people for truth in person.truths()]
    perfect = score([render_avatar(truth, 64) for truth in truths], people, _PerfectJudge(truths))
    results = summarise({"prompt": perfect, "truth": perfect}, 1, [person.identity.skin for person in people])
    assert results["methods"]["truth"]["attributes"] is None
    assert results["methods"]["truth"]["identity"]["mean"] == 1


def test_the_comparison_runs_on_a_whole_pipeline_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = write_people_base(tmp_path / "base")
    unet: Any = UNet2DConditionModel.from_pretrained(base / "unet")
    shape: dict[str, Any] = {
        "vision_dim": 128,
        "prompt_channel": 192,
        "region_proj_channel": 16,
        "region_kernel_size": 1,
    }
    PromptNetModel.from_unet(unet, **shape).save_pretrained(base / "promptnet")
    write_index(base, None, None)
    AvatarJudge(
        {field: list(values) for field, values in FIELDS.items()}, width=8, num_exact=NUM_EXACT
    ).save_pretrained(tmp_path / "judges" / "validation")
    (tmp_path / "out").mkdir()
    how: dict[str, Any] = {
        "people": 2,
        "prompts": 2,
        "steps": 2,
        "tune_steps": 1,
        "workers": 1,
        "out": tmp_path / "out",
    }
    results = evaluate_people(base, frame="zoom-0.85", **how)
    assert list(results["methods"]) == ["prompt", "described", "encode", "tuned", "fusion", "truth"]
    assert {"tuned - encode", "fusion - tuned"} <= set(results)
    assert json.loads((tmp_path / "out" / "people.json").read_text())["settings"]["frame"] == "zoom-0.85"
    assert (tmp_path / "out" / "sheet.png").is_file()
    console = Console(width=250, record=True)
    print_people(results, console)
    printed = console.export_text()
    assert all(method in printed for method in results["methods"])
    with pytest.raises(ValueError, match="dreambooth"):
        evaluate_people(base, methods=["dreambooth"])
    with pytest.raises(ValueError, match="no encoder 'promptnet-published'"):
        evaluate_people(base, methods=["published"])

    def never(*_: Any) -> Any:
        raise AssertionError("images of a finished run are generated anew")

    monkeypatch.setattr("promptnet.evaluation.harness.renderer.Renderer.__call__", never)
    assert evaluate_people(base, frame="zoom-0.85", **how)["methods"] == results["methods"]
