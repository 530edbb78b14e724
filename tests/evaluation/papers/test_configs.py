"""Shipped configs are read, the embedded ones fit the embedded model, and published figures are the papers'."""

from pathlib import Path

import pytest
import yaml

from promptnet.baselines.config import load_config as load_baseline
from promptnet.evaluation.papers import shards
from promptnet.evaluation.papers.config import PAPERS, ProFusionConfig, load_config
from promptnet.evaluation.papers.image_store import ImageStore
from promptnet.evaluation.papers.profusion_rows import make_rows
from promptnet.evaluation.papers.published import published, published_clip, published_sizes
from promptnet.evaluation.papers.run import make_table, plan_of
from promptnet.evaluation.papers.shards import Shard, choose_shard, local_device, parse_shard
from promptnet.metrics.clip_models import CLIP_MODELS

ROOT = Path("configs/evaluate")
TABLES = [path for path in sorted(ROOT.rglob("*.yaml")) if "paper" in yaml.safe_load(path.read_text())]
BASELINES = [path for path in sorted(ROOT.rglob("*.yaml")) if path not in TABLES]


@pytest.mark.parametrize("path", TABLES, ids=str)
def test_every_config_is_read(path):
    config = load_config(path)
    if isinstance(config, ProFusionConfig):
        assert [row.name for row in make_rows(config)] == list(config.rows)


def test_there_is_a_config_for_every_paper():
    assert {path.stem for path in TABLES if path.parent == ROOT} == set(PAPERS)
    assert set(load_config(ROOT / "profusion.yaml").clip) == set(CLIP_MODELS)


@pytest.mark.parametrize("path", BASELINES, ids=str)
def test_the_baselines_of_the_embedded_model_are_read(path):
    load_baseline(path.stem, path)


@pytest.mark.parametrize("path", [path for path in TABLES if path.parent.name == "embedded"], ids=str)
def test_embedded_tables_can_be_made(path, tmp_path):
    table = make_table(load_config(path, out=str(tmp_path / "out"), limit=2), "cpu")
    assert "images to make" in plan_of(table.jobs(), ImageStore(tmp_path / "out" / "images"), Shard())


def test_published_figures():
    assert len(published()["profusion"]["clip"]) == 5
    assert published_clip("profusion") == {
        "ViT-B/32": 0.293,
        "ViT-B/16": 0.283,
        "ViT-L/14": 0.225,
        "ViT-L/14@336px": 0.229,
        "RN101": 0.446,
        "RN50": 0.223,
        "RN50x4": 0.374,
        "RN50x16": 0.279,
        "RN50x64": 0.202,
    }
    assert all(set(row) == set(CLIP_MODELS) for row in published()["profusion"]["clip"].values())
    assert published_sizes("sdxl", "16x", "scalecrafter") == {
        "fid_r": 131.03,
        "kid_r": 0.063,
        "fid_b": 124.01,
        "kid_b": 0.055,
    }
    models = published()["sizes"]["models"]
    assert sum(len(rows) for scales in models.values() for rows in scales.values()) == 36
    assert published_sizes("sd15", "2x", "direct") == {}
    assert published_clip("untuned") == {}


def test_shards_share_out_all_units_once():
    parts = [parse_shard(f"{index}/3") for index in (1, 2, 3)]
    assert [sum(part.has(unit) for part in parts) for unit in range(7)] == [1] * 7
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(ValueError, match="I/N"):
            parse_shard(wrong)


def test_launchers_say_the_shard_and_the_device(monkeypatch):
    assert choose_shard(None) == Shard(0, 1)
    assert local_device("cuda") == "cuda"
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert shards.launched_shard() == choose_shard(None) == Shard(2, 4)
    assert (local_device("cuda"), local_device("cpu"), local_device("cuda:0")) == ("cuda:1", "cpu", "cuda:0")
    with pytest.raises(ValueError, match="the launcher says the shard"):
        choose_shard("1/2")
