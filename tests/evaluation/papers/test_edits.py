"""The comparison of edits: learned once, drawn by every row, and scored by CLIP's directions."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptnet import PromptNetPipeline, cli
from promptnet.evaluation.papers import edits_cards
from promptnet.evaluation.papers.config import load_config
from promptnet.evaluation.papers.edits import Edits
from promptnet.metrics.clip_models import direction_similarity, load_clip_model
from tests.evaluation.papers.conftest import noise

ROWS = ["styled-prompt", "fixed-switch", "disentanglement", "sega"]


@pytest.fixture
def values(bases, clip, tmp_path, toy_faces) -> dict[str, Any]:
    (tmp_path / "face.pt").write_bytes(b"read by nobody here")
    return {
        "paper": "disentanglement",
        "out": str(tmp_path / "out"),
        "base": str(bases["sd"]),
        "edits": [
            {"name": "hat", "from": "a", "to": "a hat"},
            {"name": "sad", "from": "a", "to": "sad", "concept": "s"},
        ],
        "rows": ROWS,
        "seeds": 2,
        "teacher": str(clip),
        "clip": {"own": str(clip)},
        "faces": {"toy": str(tmp_path / "face.pt")},
        "steps": 4,
        "iterations": 1,
    }


def run(path: Path, *more: str) -> int:
    return cli.main(["evaluate", "paper", str(path), "--device", "cpu", *more])


def test_all_rows_from_seeds_and_their_figures(values, write, tmp_path, clip, monkeypatch, capsys):
    path = write(**values)
    assert run(path) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == ROWS
    assert "| sega |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "sheet.png").is_file()
    table, model = Edits(load_config(path), "cpu"), load_clip_model("own", clip)  # type: ignore[arg-type]

    def images(row: str) -> list[Image.Image]:
        names = [job.names[0] for job in table.jobs() if job.row == row]
        return [Image.open(tmp_path / "out" / "images" / f"{name}.png") for name in names]

    before, after = images("hat/original"), images("hat/styled-prompt")
    assert images("sad/original") == before  # one neutral prompt, one original
    direction = direction_similarity(model, model.images(before), model.images(after), ("a", "a hat"))
    found = results["rows"]["styled-prompt"]["edits"]["hat"]
    assert found["direction own"]["mean"] == pytest.approx(float(direction.mean()), abs=1e-5)
    preserved = (model.images(before) * model.images(after)).sum(1).mean()
    assert found["preserved own"]["mean"] == pytest.approx(float(preserved), abs=1e-5)
    assert 0 < found["pixel_l1"]["mean"] < 1
    monkeypatch.setattr(PromptNetPipeline, "__call__", lambda *_, **__: pytest.fail("an image was made again"))
    monkeypatch.setattr(edits_cards, "_learn", lambda *_: pytest.fail("an edit was learned again"))
    assert run(path) == 0


def test_rows_differ_where_they_should(values, write, tmp_path):
    values |= {"rows": ["styled-prompt", "fixed-switch"], "edits": values["edits"][:1], "seeds": 1, "faces": {}}
    assert run(write(**values)) == 0
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 3


@pytest.mark.parametrize("family", ["sd-v", "sdxl"])
def test_images_of_a_folder_on_other_base_models(family, values, bases, write, tmp_path):
    for index in range(2):
        noise(tmp_path / "photos" / f"{index}.png", index, 50)
    rows = ["styled-prompt", "disentanglement"] if family == "sd-v" else ["styled-prompt", "ledits++"]
    values |= {"base": str(bases[family]), "images": str(tmp_path / "photos"), "rows": rows, "limit": 1}
    values["edits"] = values["edits"][:1]
    assert run(write(**values)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["images"], results["source"], list(results["rows"])) == (1, "images", rows)


def test_ledits_edits_the_originals_of_seeds(values, write, tmp_path):
    """On the embedded model: its masks need attention at a fourth of the latents' size."""
    edits = [{"name": "happy", "from": "a portrait of a person", "to": "a happy portrait of a person"}]
    values |= {"base": "checkpoints/tiny", "edits": edits, "rows": ["ledits++"], "seeds": 1, "clip": {"own": None}}
    assert run(write(**values)) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]["ledits++"]["all"]
    assert 0 < found["pixel_l1"]["mean"] < 0.5
    assert found["preserved own"]["mean"] > 0.2


def test_each_process_begins_with_another_card_and_none_is_learned_twice(values, write, monkeypatch):
    config: Any = load_config(write(**values))
    learned = []

    def learn(config: Any, edit: Any, path: Path, device: str) -> None:
        learned.append(edit["name"])
        path.write_text("a card")

    monkeypatch.setattr(edits_cards, "_learn", learn)
    edits_cards.learn_missing(config, config.edits[:1], "hash", 0, "cpu")
    edits_cards.learn_missing(config, config.edits, "hash", 3, "cpu")
    assert learned == ["hat", "sad"]
    assert edits_cards.card_path(config, config.edits[0], "hash") != edits_cards.card_path(config, config.edits[0], "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edits": [{"name": "x", "from": "a"}]}, "must have name, from and to"),
        ({"edits": [{"name": "x", "from": "S*", "to": "b"}]}, "holds a placeholder"),
        ({"edits": [{"name": "x", "from": "a", "to": "b"}] * 2}, "a name of its own"),
        ({"rows": ["segaa"]}, "unknown row 'segaa': did you mean sega?"),
        ({"images": "nowhere", "rows": ["styled-prompt"]}, "images 'nowhere' is no folder"),
        ({"images": "nowhere"}, "row sega edits images from seeds only"),
        ({"teacher": None}, "teacher must be a CLIP's folder"),
        ({"teacher": "nowhere"}, "must be a folder"),
        ({"scheduler": "DDPMScheduler"}, "must be one of DDIMScheduler"),
        ({"clip": {}}, "clip is missing"),
        ({"seeds": 0}, "seeds=0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(change, message, values, write, tmp_path, capsys):
    given = {name: value for name, value in (values | change).items() if value is not None}
    assert run(write(**given)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", ["disentanglement", "sega"])
def test_rows_that_there_are_not_for_sdxl_are_refused(row, values, bases, write, capsys):
    values |= {"base": str(bases["sdxl"]), "rows": [row]}
    assert run(write(**values)) == 2
    assert f"row {row}: there is none for base models with two text encoders" in capsys.readouterr().err
