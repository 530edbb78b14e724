"""ProFusion's table, from a folder of people to the figures, on every kind of base model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from promptnet import PromptNetPipeline, cli
from promptnet.evaluation.papers.config import load_config
from promptnet.evaluation.papers.profusion import ProFusion
from promptnet.evaluation.papers.profusion_rows import make_rows
from promptnet.metrics.clip_models import load_clip_model
from tests.evaluation.papers.conftest import noise

ROWS = [
    *("prompt-only", "textual-inversion", "dreambooth", "dreambooth-lora", "e4t", "profusion", "untuned"),
    *("no-fusion", "no-refinement", "no-augmentation", "fusion-steps-2", "guidance-2.5"),
]
FAST: dict[str, Any] = {"steps": 1, "batch_size": 1, "num_views": 1, "prompts": ["a S*"], "keep": "last"}
PRIOR: dict[str, Any] = {"identifier": "s", "prior_prompt": "a", "num_prior_images": 1, "prior_steps": 1}


def config_of(family: str, bases: Any, encoders: Any, clip: Path, people: Path, folder: Path) -> dict[str, Any]:
    baselines = {}
    for method, more in {"textual-inversion": {}, "dreambooth": PRIOR, "dreambooth-lora": PRIOR, "e4t": {}}.items():
        path = folder / f"{method}.yaml"
        path.write_text(yaml.safe_dump(FAST | more))
        baselines[method] = str(path)
    (folder / "prompts.txt").write_text("# two\nb S*\n\nc S* d\n")
    (folder / "face.pt").write_bytes(b"read by nobody here")
    return {
        "paper": "profusion",
        "out": str(folder / "out"),
        "base": str(bases[family]),
        "promptnet": str(encoders[family]),
        "image_encoder": str(bases["sd"] / "vision"),
        "references": str(people),
        "prompts": str(folder / "prompts.txt"),
        "class_word": "man",
        "steps": 2,
        "rows": ["prompt-only", "profusion"],
        "clip": {"own": str(clip)},
        "faces": {"toy": str(folder / "face.pt")},
        "sampling": {"class_scale": 1.0, "fusion_steps": 1},
        "tuning": {"steps": 1, "batch_size": 1, "num_views": 2, "prompts": ["a S*"]},
        "baselines": baselines,
    }


@pytest.fixture
def values(bases, encoders, clip, people, tmp_path, toy_faces) -> dict[str, Any]:
    return config_of("sd", bases, encoders, clip, people, tmp_path)


def e4t_folder(base: Path, values: dict[str, Any], folder: Path) -> str:
    from promptnet.baselines.e4t_encoder import e4t_fingerprint, new_e4t
    from promptnet.evaluation.papers.base_models import load_pipe

    pipe = load_pipe(base, "cpu", image_encoder=values["image_encoder"])
    new_e4t(pipe, "man").save(folder, e4t_fingerprint(pipe))
    return str(folder)


FEW = ["prompt-only", "textual-inversion", "dreambooth-lora", "profusion"]


@pytest.mark.parametrize(("family", "rows"), [("sd", ROWS), ("sd-v", FEW), ("sdxl", FEW)])
def test_all_rows_on_every_kind_of_base_model(
    family, rows, bases, encoders, clip, people, toy_faces, write, tmp_path, capsys
):
    values = config_of(family, bases, encoders, clip, people, tmp_path)
    values |= {"rows": rows, "prompts": ["b S*"]}
    if "e4t" in rows:
        values["e4t"] = e4t_folder(bases[family], values, tmp_path / "e4t")
    assert cli.main(["evaluate", "paper", str(write(**values)), "--device", "cpu"]) == 0
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == rows
    for row in results["rows"].values():
        for figure in (row["clip"]["own"], row["identity"]["toy"]):
            assert figure["low"] <= figure["mean"] <= figure["high"] <= 1
    text = (out / "results.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert all(f"| {row} |" in text for row in rows)
    assert Image.open(out / "sheet.png").width > 32 * len(rows)
    assert len(list((out / "images").glob("*.png"))) == 2 * len(rows)  # no two rows are the same images
    assert not list(out.glob("dreambooth/*"))  # gigabytes a person, which no image needs any more


def test_figures_are_those_of_the_images(values, write, clip, toy_faces, tmp_path):
    assert cli.main(["evaluate", "paper", str(write(**values)), "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    table = ProFusion(load_config(write(**values)), "cpu")  # type: ignore[arg-type]
    store_folder, model = tmp_path / "out" / "images", load_clip_model("own", clip)
    texts = ["b a man", "c a man d"]
    similarities, identities = [], []
    for job in (job for job in table.jobs() if job.row == "profusion"):
        images = [Image.open(store_folder / f"{name}.png") for name in job.names]
        cosines = [float(model.texts([t])[0] @ model.images([i])[0]) for t, i in zip(texts, images, strict=True)]
        similarities.append(np.mean(cosines))
        references = toy_faces.identity(table.people[job.unit].load())
        identities.append(float((toy_faces.identity(images) @ references.T).mean()))
    found = results["rows"]["profusion"]
    assert found["clip"]["own"]["mean"] == pytest.approx(np.mean(similarities), abs=1e-5)
    assert found["identity"]["toy"]["mean"] == pytest.approx(np.mean(identities), abs=1e-5)


def test_two_shards_make_the_same_table_as_one_and_nothing_twice(values, write, tmp_path, monkeypatch, capsys):
    alone = {**values, "out": str(tmp_path / "alone")}
    assert cli.main(["evaluate", "paper", str(write(**alone)), "--device", "cpu"]) == 0
    command = ["evaluate", "paper", str(write(**values)), "--device", "cpu"]
    assert cli.main([*command, "--shard", "2/2"]) == 0
    assert "4 images are left to the others" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(command) == 0  # as torchrun and accelerate launch it
    one, other = ((tmp_path / name / "results.json").read_text() for name in ("alone", "out"))
    assert one == other
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(PromptNetPipeline, "__call__", lambda *_, **__: pytest.fail("an image was made again"))
    assert cli.main(command) == 0
    lost = next((tmp_path / "out" / "images").glob("*.png"))
    lost.unlink()
    assert cli.main([*command, "--dry-run"]) == 0
    assert "in all 1 of 8 images" in capsys.readouterr().out


def test_published_figures_stand_beside_ours(values, write, tmp_path, monkeypatch, clip):
    monkeypatch.setattr("promptnet.metrics.clip_models._VISION", {"ViT-B/32": (20, 8, 16)})
    values |= {"clip": {"ViT-B/32": str(clip)}, "faces": {}, "rows": ["prompt-only", "profusion", "no-fusion"]}
    assert cli.main(["evaluate", "paper", str(write(**values)), "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [rows[row]["clip"]["ViT-B/32"]["published"] for row in rows] == [0.271, 0.293, None]
    assert "; 0.293 |" in (tmp_path / "out" / "results.md").read_text()


def test_ablations_change_what_they_say(values, write):
    values |= {"rows": ROWS}
    rows = {row.name: row for row in make_rows(load_config(write(**values)))}  # type: ignore[arg-type]
    ours = rows["profusion"]

    def changed(name: str) -> dict[str, Any]:
        return {key: value for key, value in rows[name].sampling.items() if value != ours.sampling[key]}

    assert changed("no-fusion") == {"fusion_steps": 0}
    assert changed("no-refinement") == {"class_scale": 0.0}
    assert changed("fusion-steps-2") == {"fusion_steps": 2}
    assert changed("guidance-2.5") == {"subject_scale": 2.5}
    assert changed("no-augmentation") == changed("untuned") == {}
    assert rows["no-augmentation"].tuning == {**values["tuning"], "num_views": 1, "scales": [1.0, 1.0], "flip": False}
    assert rows["untuned"].tuning is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": "nowhere"}, "references 'nowhere' is no folder"),
        ({"prompts": ["a man"]}, "prompt 'a man' must hold S*"),
        ({"prompts": ["S1* and S2*"]}, "no other placeholder"),
        ({"prompts": "none.txt"}, "is no file"),
        ({"rows": ["profusoin"]}, "unknown row 'profusoin': did you mean profusion?"),
        ({"rows": ["profusion", "profusion"]}, "stands twice"),
        ({"rows": ["no-fusion"], "sampling": {"fusion_steps": 0}}, "no-fusion is profusion itself"),
        ({"clip": {"ViT-B/23": "x"}}, "no CLIP model 'ViT-B/23'"),
        ({"clip": {"RN50": "none.pt"}}, "nothing is downloaded"),
        ({"faces": {"vggface2": "none.pt"}}, "nothing is downloaded"),
        ({"faces": {}, "clip": {}}, "nothing is measured"),
        ({"clip": {"own": None}}, "has no CLIP of its own"),
        ({"base": "nowhere"}, "is no folder in diffusers layout"),
        ({"promptnet": None}, "has no encoder"),
        ({"image_encoder": None}, "need image_encoder"),
        ({"rows": ["e4t"]}, "row e4t needs e4t"),
        ({"baselines": {"dreambooth": "none.yaml"}, "rows": ["dreambooth"]}, "cannot be read"),
        ({"baselines": {"lora": "x"}}, "baselines: 'lora'"),
        ({"sampling": {"subjct_scale": 1}}, "Unknown sampling parameter"),
        ({"tuning": {"steps": -1}}, "must be a whole number"),
        ({"promts": "x"}, "unknown 'promts': did you mean prompts?"),
        ({"base": None}, "base is missing"),
        ({"paper": "profusoin"}, "must be one of profusion"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(change, message, values, write, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("promptnet.evaluation.papers.profusion.load_pipe", lambda *_, **__: pytest.fail("loaded"))
    given = {name: value for name, value in (values | change).items() if value is not None}
    assert cli.main(["evaluate", "paper", str(write(**given)), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named(values, write, people, tmp_path, capsys):
    broken = noise(people / "bob" / "2.png", 9)
    broken.write_bytes(broken.read_bytes()[:200])
    assert cli.main(["evaluate", "paper", str(write(**values)), "--device", "cpu"]) == 2
    assert "2.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_are_checked(values, write, capsys):
    path = str(write(**values))
    assert cli.main(["evaluate", "paper", path, "--shard", "3/2"]) == 2
    assert cli.main(["evaluate", "paper", "none.yaml"]) == 2
    assert cli.main(["evaluate", "paper", path, "--rows", "x"]) == 2
    assert "unknown row 'x'" in capsys.readouterr().err
