"""From avatars in a folder to an encoder, by the shipped config: prepare, cache, train, validate, save."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from promptnet import PromptNetPipeline
from promptnet.datasets.avatars.files import write_avatars
from promptnet.datasets.avatars.person import Split
from promptnet.datasets.prepare.options import PrepareOptions
from promptnet.datasets.prepare.report import load_prepared
from promptnet.datasets.prepare.run import prepare_images
from promptnet.datasets.prepare.sources.base import Columns
from promptnet.training.callbacks.metrics_file import read_metrics, values_of
from tests.training.conftest import ROOT
from tests.training.forked import Runs


def prepare(folder: Path) -> list[Path]:
    """Two prepared sets, of other people each."""
    places: list[Path] = []
    sets: tuple[tuple[Split, int], ...] = (("train", 12), ("validation", 6))
    for split, number in sets:
        write_avatars(folder / "files" / split, split, number)
        places.append(folder / split)
        names, options = [str(folder / "files" / split)], PrepareOptions(detector="none", size_px=64)
        prepare_images(names, places[-1], options, Columns(caption="txt"))
    return places


def config_of(folder: Path, base: Path, train: Path, validation: Path) -> Path:
    """The shipped config, a few steps of it, on folders of the test's own."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/pretrain/tiny-prepared.yaml").read_text())
    assert config["model"]["init_args"]["export_dir"] == f"{config['model']['init_args']['base_dir']}/promptnet"
    config["model"]["init_args"] |= {"base_dir": str(base), "export_dir": str(base / "promptnet"), "warmup_steps": 1}
    places = {"data_dir": str(train), "validation_dir": str(validation), "cache_dir": str(folder / "cache")}
    config["data"]["init_args"] |= {**places, "num_validation": 4, "batch_size": 2, "num_workers": 0}
    config["trainer"] |= {"max_steps": 2, "val_check_interval": 2, "accelerator": "cpu", "log_every_n_steps": 1}
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("ValidationImages"):
            callback["init_args"] |= {"num_people": 1, "num_steps": 1}
    place = folder / "config.yaml"
    place.write_text(yaml.safe_dump(config))
    return place


def test_portraits_become_an_encoder(runs: Runs, random_base: Path, tmp_path: Path):
    base, run_dir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(random_base, base)
    train, validation = prepare(tmp_path)
    rows, others = ([dict(row) for row in load_prepared(place, streaming=True)] for place in (train, validation))
    assert len(rows) == 12
    assert not {row["identity"] for row in rows} & {row["identity"] for row in others}
    assert all("portrait of S*" in row["caption"] for row in rows)
    assert len({row["caption"] for row in rows}) > 6

    options = [f"--config={config_of(tmp_path, base, train, validation)}", f"--run_dir={run_dir}", "--threads=1"]
    pid = runs.start(tmp_path / "log", "fit", *options, "--trainer.enable_progress_bar=false")
    assert runs.wait(pid) == 0, (tmp_path / "log").read_text()[-3000:]
    kinds = {place.name.split("-")[0] for place in (tmp_path / "cache/features").iterdir()}
    assert kinds == {"latents", "vision"}
    entries = read_metrics(run_dir / "metrics.jsonl")
    for name in ("val/loss", "val/identity", "val/images_seconds"):
        assert [step for step, _ in values_of(entries, name)] == [2], name
    pipe: Any = PromptNetPipeline.from_pretrained(base)
    assert pipe.promptnet.config["vision_dim"] == pipe.image_encoder.config.hidden_size
    assert pipe.config["sampling"]["subject_scale"] == 2.0
    card = (base / "promptnet/README.md").read_text()
    assert "`val/identity`" in card
    assert f"12 images of {len({row['identity'] for row in rows})} people were trained on" in card
    for recipe in ("data.prompts.captioned | `0.667`", "data.features | `['latents', 'vision']`", "max_steps | `2`"):
        assert f"| {recipe} |" in card
    assert "instantiate" not in card  # how the run was put together is none of its recipe
    assert (base / "promptnet/loss.png").is_file()
