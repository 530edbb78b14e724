"""Options and data that change between a run and its repetition: what the command says holds, or is refused."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import UNet2DConditionModel

from promptnet.training.run.record import RunChanged, RunRecord
from promptnet.training.stage import Stage
from tests.datasets.conftest import write_shard
from tests.training.forked import Runs
from tests.training.pretrain.face_runs import face_pretraining
from tests.training.tiny_run import TinyData, TinyStage


class Rates(L.Callback):
    """Notes what the optimiser was told at each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[float], list[float], tuple[float, float]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        groups = optimizer.param_groups
        rates, decays = ([group[name] for group in groups] for name in ("lr", "weight_decay"))
        self.steps.append((rates, decays, tuple(groups[0]["betas"])))


def fit(place: Path, max_steps: int, ckpt: Path | None = None, **options: Any) -> tuple[Any, Rates]:
    """Train the tiny stage to `max_steps`; the trainer and what its optimiser was told."""
    rates = Rates()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(max_steps=max_steps, accelerator="cpu", callbacks=[rates], default_root_dir=str(place), **quiet)
    given: dict[str, Any] = {"width": 8, "pause_s": 0.0, "warmup_steps": 2, "weight_decay": 0.1, "schedule": "cosine"}
    trainer.fit(TinyStage(**given | options), TinyData(num_workers=0), ckpt_path=ckpt, weights_only=True)
    return trainer, rates


@pytest.fixture(scope="module")
def at_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of 4 steps of 4."""
    place = tmp_path_factory.mktemp("four")
    trainer, _ = fit(place, 4)
    trainer.save_checkpoint(place / "four.ckpt")
    return place / "four.ckpt"


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 3e-4},
        {"weight_decay": 0.7},
        {"betas": (0.8, 0.95)},
        {"warmup_steps": 7},
        {"schedule": "trapezoid", "decay_fraction": 0.9},
        {"schedule": "constant"},
        {},
    ],
    ids=lambda options: "-".join(options) or "max_steps",
)
def test_a_resumed_run_trains_as_its_command_says(options: dict[str, Any], at_four: Path, tmp_path: Path):
    _, whole = fit(tmp_path, 9, **options)
    _, resumed = fit(tmp_path, 9, at_four, **options)
    assert len(resumed.steps) == 5
    assert resumed.steps == whole.steps[4:]  # to the last bit, the first step included


def test_the_schedule_of_a_fresh_run_is_that_of_its_settings(tmp_path: Path):
    trainer, rates = fit(tmp_path, 9, learning_rate=0.5)
    stage: Stage = trainer.lightning_module
    assert [rates for rates, _, _ in rates.steps] == [[0.5 * stage.rate_factor(step, 9)] * 2 for step in range(9)]
    assert rates.steps[3][1] == [0.1, 0.0]


def test_adams_averages_outlive_another_rate(at_four: Path, tmp_path: Path):
    saved = torch.load(at_four, weights_only=True)["optimizer_states"][0]["state"]
    trainer, _ = fit(tmp_path, 5, at_four, learning_rate=0.0)
    state = trainer.optimizers[0].state_dict()["state"]
    assert {int(each["step"]) for each in state.values()} == {5}
    assert {int(each["step"]) for each in saved.values()} == {4}


def run(options: dict[str, Any], facts: dict[str, str]) -> RunRecord:
    record = RunRecord(
        {"seed_everything": 0, "model.seed": 0, "data.batch_size": 4, "model.learning_rate": 0.1} | options
    )
    record.facts = {"weights of unet": "a", "images": "b", "weight averaging": "EMAWeightAveraging"} | facts
    return record


def go_on(record: RunRecord, begun: RunRecord | None = None) -> None:
    checkpoint: dict[str, Any] = {"global_step": 7}
    (begun or run({}, {})).on_save_checkpoint(None, None, checkpoint)
    record.on_load_checkpoint(None, None, checkpoint)


@pytest.mark.parametrize(
    ("options", "facts", "said"),
    [
        ({}, {"weights of unet": "c"}, "weights of unet: c, before a"),
        ({}, {"images": "c"}, "images: c, before b"),
        ({}, {"weight averaging": ""}, "weight averaging: none, before EMA"),
        ({"seed_everything": 1}, {}, "seed_everything=1, before 0"),
        ({"model.seed": 1}, {}, r"model\.seed=1, before 0"),
    ],
)
def test_a_run_does_not_go_on_with_something_else(options: dict[str, Any], facts: dict[str, str], said: str):
    with pytest.raises(RunChanged, match=f"at step 7 .*{said}.* another --run_dir"):
        go_on(run(options, facts))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the run says of changed options."""
    lines: list[str] = []
    monkeypatch.setattr("promptnet.training.run.record.rank_zero_info", lines.append)
    return lines


def test_buckets_are_cut_by_the_batch_size(said: list[str]):
    sizes = {"data.sizes_px": [[32, 32]]}
    with pytest.raises(RunChanged, match=r"data\.batch_size=8"):
        go_on(run({"data.batch_size": 8} | sizes, {}), run(sizes, {}))
    go_on(run({"data.batch_size": 8}, {}))
    assert "data.batch_size=8, before 4" in said[-1]


def test_what_takes_effect_from_here_on_is_said(said: list[str]):
    go_on(run({"model.learning_rate": 0.2, "data.cache_dir": "b"}, {}), run({"data.cache_dir": "a"}, {}))
    assert "from step 7 on with other options: model.learning_rate=0.2, before 0.1" in said[-1]
    assert "cache_dir" not in said[-1]
    said.clear()
    go_on(run({}, {}))
    go_on(run({"new": 1}, {}), run({}, {"weight averaging": ""}))
    go_on(run({"data.reference": "same-image"}, {}), run({"data.reference": "same-picture"}, {}))  # an older word
    assert said == []


def test_a_checkpoint_that_does_not_say_is_warned_of():
    with pytest.warns(UserWarning, match="does not say what its run was made of"):
        run({}, {}).on_load_checkpoint(None, None, {"global_step": 7})


FACES = ("--data.init_args.features=[latents]", "--data.init_args.num_validation=2")


def test_other_base_models_data_and_seeds_are_refused_by_the_command(
    runs: Runs, face_base: Path, faces: Path, tmp_path: Path
):
    start = face_pretraining(runs, face_base, faces, *FACES)
    assert runs.wait(start(tmp_path / "run", "--trainer.max_steps=2")) == 0, (tmp_path / "run/log").read_text()[-3000:]
    other_base, other_faces = tmp_path / "base", tmp_path / "faces"
    shutil.copytree(face_base, other_base)
    unet: Any = UNet2DConditionModel.from_pretrained(other_base / "unet")
    with torch.no_grad():
        unet.conv_in.weight += 0.01
    unet.save_pretrained(other_base / "unet")
    for shard in range(3):
        write_shard(other_faces / f"{shard}.parquet", range(8 * shard, 8 * shard + 8), [(40, 40), (30, 48)], people=3)
    for option, said in {
        f"--model.init_args.base_dir={other_base}": "weights of unet",
        f"--data.init_args.data_dir={other_faces}": "images: ",
        "--data.init_args.num_validation=8": "images trained on",
        "--model.init_args.seed=5": "model.seed=5, before 0",
        "--data.init_args.seed=5": "data.seed=5, before 0",
    }.items():
        (tmp_path / "run/log").unlink()
        assert runs.wait(start(tmp_path / "run", option)) == 1
        log = (tmp_path / "run/log").read_text()
        assert "train.py: the run is at step 2 and cannot go on with something else" in log, log[-2000:]
        assert said in log
        assert "Traceback" not in log
    moved = tmp_path / "moved"
    shutil.copytree(face_base, moved)  # the same weights elsewhere are the same base model
    assert runs.wait(start(tmp_path / "run", f"--model.init_args.base_dir={moved}", "--trainer.max_steps=3")) == 0
