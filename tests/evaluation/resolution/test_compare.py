"""The comparison of methods at other sizes, with a renderer whose methods are known to be good or bad."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptnet.datasets.avatars.render import render
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.tasks import Person, make_described_people, make_people
from promptnet.evaluation.harness.workers import RendererSpec
from promptnet.evaluation.resolution import compare as resolution
from promptnet.evaluation.resolution.compare import evaluate_resolution
from promptnet.evaluation.resolution.methods import LADDER, Shape, Size, ladder_settings, make_methods
from promptnet.evaluation.resolution.score import real_images, right
from promptnet.evaluation.resolution.subjects import compare_identity
from promptnet.metrics.head_count import compose
from promptnet.metrics.judge import to_pixels

SHAPE = Shape(3, 64, 16)
PEOPLE: dict[str, Any] = {"people": 10, "workers": 1}
SMALL: dict[str, Any] = {**PEOPLE, "sizes": ["128x128", "160x96:3"], "methods": ["direct", "auto"]}


class NearestJudge:
    """Predict the record of the most similar real render."""

    def __init__(self, people: list[Person]):
        self.records = [{**person.identity.record(), **person.eval_prompts[0].attributes.record()} for person in people]
        self.known = self.features(to_pixels(real_images(people, (64, 64)))) if people else torch.empty(0)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return colours, and how much the halves differ, which tells one head from several."""
        repeated = (pixels - pixels.roll(32, 3)).abs()
        return torch.nn.functional.avg_pool2d(torch.cat([pixels, 4 * repeated], 1), 16).flatten(1)

    def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
        return [self.records[int(place)] for place in torch.cdist(self.features(pixels), self.known).argmin(1)]


class KnownRenderer:
    """Generate the truth in the middle, but four of it for the unmodified network at larger sizes."""

    def __init__(self):
        self.generated: list[str] = []

    def __call__(self, person: Person, method: Method) -> list[Image.Image]:
        self.generated.append(method.name)
        config: Any = method.config
        width, height = config["width"], config["height"]
        side_px = min(width, height)
        image = render(person.identity, person.eval_prompts[0].attributes, side_px)
        if method.name == "direct":
            image = compose([image.resize((side_px // 2, side_px // 2))] * 4, 2)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image, ((width - side_px) // 2, (height - side_px) // 2))
        return [canvas]


class FakeFinder:
    def count(self, images: list[Image.Image]) -> np.ndarray:
        """Return four if both halves are equal."""
        halves = [np.split(np.asarray(image), 2, axis=1) for image in images]
        return np.asarray([4 if np.array_equal(left, right) else 1 for left, right in halves])


@pytest.fixture
def renderer() -> KnownRenderer:
    return KnownRenderer()


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, base: Path, renderer: KnownRenderer) -> None:
    (base / "unet" / "config.json").write_text(json.dumps({"sample_size": 16, "block_out_channels": [4, 4, 4]}))
    judge = NearestJudge(make_described_people("validation", 10, 1))
    monkeypatch.setattr(resolution, "load_judge", lambda folder, device=None: judge)
    monkeypatch.setattr(resolution.HeadFinder, "of", lambda judge: FakeFinder())
    monkeypatch.setattr(RendererSpec, "build", lambda self: renderer)


def test_correct_images_win_and_repetition_loses(base: Path, tmp_path: Path, capsys: Any) -> None:
    results = evaluate_resolution(base, out=tmp_path, **SMALL)
    assert list(results["sizes"]) == ["128x128"]  # three images are too few to measure
    methods = results["sizes"]["128x128"]["rows"]
    assert list(methods) == ["real", "trained", "direct", "auto"]
    assert methods["auto"]["attributes"]["mean"] == methods["real"]["attributes"]["mean"] == 1
    assert methods["auto"]["kid_r"]["mean"] < methods["direct"]["kid_r"]["low"]
    assert (methods["auto"]["heads"], methods["direct"]["heads"]) == (1, 4)
    gains = results["sizes"]["128x128"]["auto_gains"]["direct"]
    assert all(gains[measure]["low"] > 0 for measure in ("kid_r", "kid_b", "one_head"))
    assert [check["holds"] for check in results["claims"]] == [True, True]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "sheet-160x96.png").is_file()
    assert "KID r" in capsys.readouterr().out


def test_repeating_the_command_generates_nothing_again(base: Path, tmp_path: Path, renderer: KnownRenderer) -> None:
    first = evaluate_resolution(base, out=tmp_path, **SMALL)
    generated = len(renderer.generated)
    assert generated == 10 + 10 * 2 + 3 * 2
    assert evaluate_resolution(base, out=tmp_path, **SMALL) == first
    assert len(renderer.generated) == generated


def test_a_worse_auto_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch, renderer: KnownRenderer) -> None:
    swapped = {"direct": "auto", "auto": "direct"}
    generate = KnownRenderer.__call__

    def worse(self: KnownRenderer, person: Person, method: Method) -> list[Image.Image]:
        return generate(self, person, Method(swapped.get(method.name, method.name), "prompt", config=method.config))

    monkeypatch.setattr(KnownRenderer, "__call__", worse)
    results = evaluate_resolution(base, **{**SMALL, "sizes": ["128x128"]})
    assert [check["holds"] for check in results["claims"]] == [False, False]
    assert "kid_r, auto against direct" in results["claims"][0]["figures"]


class SubjectRenderer:
    """Generate subjects correctly, but the first person for everybody if PromptNet sees the reference's latents."""

    def __init__(self, people: list[Person]):
        self.first = people[0].identity

    def __call__(self, person: Person, method: Method) -> list[Image.Image]:
        config: Any = method.config
        who = self.first if config["encoder_input"] == "reference" else person.identity
        return [render(who, eval_prompt.attributes, config.get("width", 64)) for eval_prompt in person.eval_prompts]


def test_subjects_are_compared_at_twice_the_size_for_both_encoder_inputs(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = make_people("validation", 4, 2)
    judge = NearestJudge([])
    judge.records = [
        {**one.identity.record(), **eval_prompt.attributes.record()}
        for one in people
        for eval_prompt in one.eval_prompts
    ]
    judge.known = judge.features(to_pixels([image for one in people for image in one.true_images(64)]))
    monkeypatch.setattr(RendererSpec, "build", lambda self: SubjectRenderer(people))
    found = compare_identity(RendererSpec(base, 4), 4, seed=0, out=None, judge=judge, workers=1)
    assert found["size"] == "128x128"
    assert found["trained"]["mean"] == found["auto"]["mean"] == found["adapted"]["mean"] == 1
    assert found["auto minus trained"]["mean"] == 0
    assert found["adapted-reference"]["mean"] < 0.9
    lost = found["adapted-reference minus trained"]
    assert lost["mean"] == pytest.approx(found["adapted-reference"]["mean"] - 1)
    for worst, holds in ((found["auto minus trained"], True), (lost, False)):
        (check,) = resolution.checks({"sizes": {}, "subjects": {**found, "auto minus trained": worst}})
        assert check["holds"] == holds
        assert len(check["figures"]) == 3


def test_methods_have_the_settings_of_their_names() -> None:
    methods = {method.name: method.config for method in make_methods(None, Size(128, 128), SHAPE, 20, {})}
    settings: Any = {name: config["resolution"] for name, config in methods.items()}
    assert tuple(methods) == LADDER
    assert settings["direct"] == "off"
    assert settings["attention"]["attention"]
    assert not settings["attention"]["factors"]
    outermost = set(settings["adapted"]["factors"]) - set(settings["redilation"]["factors"])
    assert outermost == set(settings["adapted"]["dispersed"]) == {"down_blocks.0", "up_blocks.2"}
    assert settings["redilation"]["factors"].items() < settings["adapted"]["factors"].items()
    assert settings["adapted"]["drawn_size_px"] is None
    assert settings["auto"]["drawn_size_px"] == (64, 64)
    assert not settings["auto"]["factors"]
    assert not settings["redilation"]["attention"]
    assert settings["+dispersion"]["dispersed_steps"] == settings["+damping"]["damped_steps"] == 20
    assert set(settings["+damping"]["damped_factors"]) < set(settings["redilation"]["factors"])
    smaller = ladder_settings(Size(32, 32), SHAPE, 20)
    assert set(smaller["redilation"].factors.values()) == {(0.5, 0.5)}


def test_own_settings_are_methods_too(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("factors: {mid_block: 3}\nactive_steps: 10\n")
    [method] = make_methods([str(own)], Size(128, 128), SHAPE, 20, {"guidance_scale": 2.0})
    drawing: Any = method.config
    assert drawing["resolution"]["factors"] == {"mid_block": (3.0, 3.0)}
    assert drawing["guidance_scale"] == 2.0
    for names, message in (([], "methods is empty"), (["nonsense"], "nonsense")):
        with pytest.raises(ValueError, match=message):
            make_methods(names, Size(128, 128), SHAPE, 20, {})


def test_sizes_are_parsed() -> None:
    assert Size.parse("160x96") == Size(160, 96)
    assert Size.parse("192x192:16").count == 16
    for text in ("160", "160x", "160x96:0", "axb"):
        with pytest.raises(ValueError, match="size"):
            Size.parse(text)


def test_predicted_fields_are_compared_with_the_record() -> None:
    people = make_described_people("validation", 3, 1)
    from promptnet.metrics.judge import read_images

    prediction = read_images(NearestJudge(people), real_images(people, (96, 160)))
    assert right(people, prediction).tolist() == [1, 1, 1]
