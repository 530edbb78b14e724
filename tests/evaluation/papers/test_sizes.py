"""The tables of sizes: every row at every size, and FID and KID of what was drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptnet import PromptNetPipeline, cli
from promptnet.evaluation.papers.config import load_config
from promptnet.evaluation.papers.sizes import SIDES, Sizes
from promptnet.metrics.fid import fid
from promptnet.metrics.kid import unpaired_kid
from tests.evaluation.papers.conftest import FAMILIES, noise

ROWS = ["direct", "attn-sf", "scalecrafter", "auto"]


class Toy:
    """A network whose features are an image's mean colours; it keeps the sizes that it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def features(self, images: Any) -> np.ndarray:
        self.seen += [image.size for image in images]
        return np.stack([np.asarray(image.convert("RGB"), dtype=float).mean((0, 1)) / 255 for image in images])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    network = Toy()
    monkeypatch.setattr("promptnet.evaluation.papers.sizes_score.load_features", lambda *_: network)
    return network


@pytest.fixture
def values(bases, clip, tmp_path) -> dict[str, Any]:
    for index in range(3):
        noise(tmp_path / "real" / f"{index}.png", index)
    (tmp_path / "inception.pth").write_bytes(b"read by nobody here")
    return {
        "paper": "scalecrafter",
        "out": str(tmp_path / "out"),
        "models": {"sd15": {"base": str(bases["sd"]), "settings": "derived"}},
        "prompts": ["a b", "c"],
        "real": str(tmp_path / "real"),
        "scales": ["4x", "8x"],
        "rows": ROWS,
        "features": {"inception": str(tmp_path / "inception.pth")},
        "clip": {"own": str(clip)},
        "steps": 2,
    }


def images_of(table: Sizes, row: str) -> list[Image.Image]:
    folder = Path(table.config.out) / "images"
    return [Image.open(folder / f"{job.names[0]}.png") for job in table.jobs() if job.row == row]


def test_all_rows_on_every_kind_of_base_model(values, bases, toy, write, tmp_path, capsys):
    models = {name: {"base": str(bases[f]), "settings": "derived"} for name, f in zip("abc", FAMILIES, strict=True)}
    values |= {"models": models, "scales": ["4x"], "steps": 1}
    command = ["evaluate", "paper", str(write(**values)), "--device", "cpu"]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    for model in models:
        assert list(found[model]["scales"]["4x"]) == ROWS
        values_of = [row["fid_b"] for row in found[model]["scales"]["4x"].values()]
        assert len(set(values_of)) > 1  # the rows are not all one
        assert np.isfinite([row["clip"]["own"] for row in found[model]["scales"]["4x"].values()]).all()
    assert "| 4x | scalecrafter |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_figures_sizes_and_published_ones(values, toy, write, tmp_path, monkeypatch):
    values |= {"rows": ["direct", "attn-sf"], "scales": ["4x", "8x"]}
    path = write(**values)
    assert cli.main(["evaluate", "paper", str(path), "--device", "cpu"]) == 0
    table = Sizes(load_config(path), "cpu")  # type: ignore[arg-type]
    found = json.loads((tmp_path / "out" / "results.json").read_text())["models"]["sd15"]
    drawn, own = images_of(table, "sd15/8x/direct"), images_of(table, "sd15/trained/trained")
    assert {image.size for image in drawn} == {(128, 64)}
    assert {image.size for image in own} == {(32, 32)}
    features, others = toy.features(drawn), toy.features(own)
    real = toy.features([Image.open(tmp_path / "real" / f"{index}.png") for index in range(3)])
    figures = found["scales"]["8x"]["direct"]
    assert figures["fid_r"] == pytest.approx(fid(features, real))
    assert figures["kid_r"] == pytest.approx(unpaired_kid(features, real))
    assert figures["fid_b"] == pytest.approx(fid(features, others))
    assert figures["kid_b"] == pytest.approx(unpaired_kid(features, others))
    assert figures["published"] == {"fid_r": 74.52, "kid_r": 0.032, "fid_b": 68.98, "kid_b": 0.027}
    assert found["real"] == 3
    assert "; 74.52 |" in (tmp_path / "out" / "results.md").read_text()
    monkeypatch.setattr(PromptNetPipeline, "__call__", lambda *_, **__: pytest.fail("an image was made again"))
    assert cli.main(["evaluate", "paper", str(path), "--device", "cpu"]) == 0


def test_what_rows_give_the_pipeline(values, write):
    table = Sizes(load_config(write(**values)), "cpu")  # type: ignore[arg-type]
    given = {row: table.settings["sd15", "4x", row] for row in ROWS}
    assert (given["direct"], given["auto"]) == ("off", "auto")
    assert given["attn-sf"]["attention"]
    assert not given["attn-sf"]["factors"]
    assert given["scalecrafter"]["factors"]
    assert not given["scalecrafter"]["attention"]
    assert all(width * height == pytest.approx(float(scale[:-1])) for scale, (width, height) in SIDES.items())


def test_published_settings_are_found_by_model_and_size(values, write, monkeypatch):
    monkeypatch.setattr(Sizes, "_check_layers", lambda self: None)
    monkeypatch.setattr("promptnet.evaluation.resolution.methods.image_size", lambda base: 512)
    values |= {"models": {"sd15": {"base": values["models"]["sd15"]["base"]}}, "scales": ["16x"], "steps": 50}
    table = Sizes(load_config(write(**values)), "cpu")  # type: ignore[arg-type]
    found = table.settings["sd15", "16x", "scalecrafter"]
    assert found["damped_steps"] == 35
    assert found["factors"]["down_blocks.2"] == (3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real": "nowhere"}, "real 'nowhere' is no folder"),
        ({"prompts": ["S* on a hill"]}, "holds a placeholder"),
        ({"rows": ["direct", "atn-sf"]}, "unknown row 'atn-sf': did you mean attn-sf?"),
        ({"scales": ["5x"]}, "unknown scale '5x'"),
        ({"features": {"inception": "none.pth"}}, "nothing is downloaded"),
        ({"features": {"vgg": "x"}}, "must be {inception: FILE}"),
        ({"features": {"judge": "validation"}}, "there is no judge"),
        ({"models": {"x": {"base": "nowhere"}}}, "is no folder in diffusers layout"),
        ({"models": {"x": {}}}, "must have base"),
        ({"models": {}}, "models is missing"),
        ({"clip": {"ViT": "x"}}, "no CLIP model 'ViT'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(change, message, values, write, tmp_path, capsys):
    assert cli.main(["evaluate", "paper", str(write(**(values | change))), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_that_do_not_fit_are_refused(values, bases, write, capsys):
    base = str(bases["sd"])
    for settings, message in [({}, "no published settings sd15-64x64"), ("published:sd15-1024x1024", "4 down blocks")]:
        values |= {"models": {"sd15": {"base": base, "settings": settings}}, "scales": ["4x"]}
        assert cli.main(["evaluate", "paper", str(write(**values)), "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_scripts_of_a_feature_network_are_refused(values, write, tmp_path, capsys):
    import torch

    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "inception.pth"))
    assert cli.main(["evaluate", "paper", str(write(**values)), "--device", "cpu"]) == 2
    assert "TorchScript" in capsys.readouterr().err
