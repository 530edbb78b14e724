"""Several processes do what one does with accumulation, and share checkpoints with it."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet.training.run.preemption import EXIT_INTERRUPTED
from tests.training.conftest import ROOT
from tests.training.forked import Runs
from tests.training.run.kill_run import newest_step, state_at, step_reached
from tests.training.run.ledger import read_ledger
from tests.training.run.ranks import CALLBACKS, assert_alike, farthest, slurm_task, start_ranks
from tests.training.run.test_checkpoints import damage

LIMIT_S = 10


def pretraining(runs: Runs, base: Path, cache: Path):
    """Starts 4 steps of pretraining a random encoder, 4 samples a step and process."""

    def start(run_dir: Path, *options: str, environment: dict[str, str] | None = None) -> int:
        run_dir.mkdir(exist_ok=True)
        given = [f"--config={ROOT / 'configs/pretrain/tiny.yaml'}", f"--run_dir={run_dir}", "--threads=1"]
        given += [f"--model.init_args.base_dir={base}", f"--model.init_args.export_dir={run_dir / 'encoder'}"]
        given += ["--model.init_args.warmup_steps=1", "--model.init_args.words_only_steps=2"]
        given += [f"--data.init_args.cache_dir={cache}"]
        given += ["--data.init_args.num_images=48", "--data.init_args.num_validation=4"]
        given += ["--data.init_args.batch_size=4", "--trainer.max_steps=4", "--checkpoint.every_n_train_steps=2"]
        given += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
        given += [f"--trainer.callbacks={CALLBACKS.replace('FOLDER', str(run_dir / 'ledger'))}"]
        return runs.start(run_dir / "log", "fit", *given, *options, environment=environment)

    return start


ALONE = ("--trainer.accumulate_grad_batches=2", "--trainer.devices=1")


@pytest.fixture(scope="module")
def one(runs: Runs, random_base: Path, image_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one process makes, with the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("one")
    start = pretraining(runs, random_base, image_cache)
    assert runs.wait(start(folder, *ALONE)) == 0, (folder / "log").read_text()[-3000:]
    return folder


def test_one_rank_goes_on_as_two_that_slurm_has_started(
    runs: Runs, random_base: Path, image_cache: Path, one: Path, tmp_path: Path
):
    start, more = pretraining(runs, random_base, image_cache), tmp_path / "more"
    shutil.copytree(one / "checkpoints/step=2.ckpt", more / "checkpoints/step=2.ckpt")
    ranks = start_ranks(runs, more, start, told=slurm_task)
    assert [runs.wait(pid) for pid in ranks] == [0, 0], (more / "log").read_text()[-3000:]
    assert_alike(one, more, step=4)
    ledgers = [read_ledger_from(more / f"ledger/rank-{rank}.jsonl") for rank in range(2)]
    seen = sorted(number for ledger in ledgers for entry in ledger for number in entry["sample"])
    assert seen == list(range(16, 32))  # the first half was seen before


def test_all_ranks_skip_what_has_changed_at_the_same_length(
    runs: Runs, random_base: Path, image_cache: Path, one: Path, tmp_path: Path
):
    start, run_dir = pretraining(runs, random_base, image_cache), tmp_path / "run"
    shutil.copytree(one / "checkpoints", run_dir / "checkpoints")
    damage(run_dir / "checkpoints/step=4.ckpt")
    ranks = start_ranks(runs, run_dir, start, "--trainer.max_steps=6")
    log = run_dir / "log"
    assert [runs.wait(pid) for pid in ranks] == [0, 0], log.read_text()[-3000:]
    assert log.read_text().count("skipping the damaged checkpoint") == 1
    assert newest_step(run_dir) == 6


def read_ledger_from(path: Path) -> list[dict[str, Any]]:
    """The batches of a ledger that begins in the middle of a run."""
    return [record for record in map(json.loads, path.read_text().splitlines()) if "batch" in record]


def test_two_ranks_equal_accumulation_and_go_on_as_one(
    runs: Runs, random_base: Path, image_cache: Path, one: Path, tmp_path: Path
):
    start, two = pretraining(runs, random_base, image_cache), tmp_path / "two"
    kill = ["--trainer.callbacks+=tests.training.run.killer.KillAt", "--trainer.callbacks.step=3"]
    ranks = start_ranks(runs, two, start, *kill)
    codes = [runs.wait(pid) for pid in ranks]
    assert -signal.SIGKILL in codes, (two / "log").read_text()[-3000:]
    assert newest_step(two) == 2
    assert_alike(one, two, step=2)
    first = state_at(two, 2)
    assert farthest(first["state_dict"], first["current_model_state"]) > 1e-5  # the average lags

    assert runs.wait(start(two, *ALONE)) == 0, (two / "log").read_text()[-3000:]
    assert_alike(one, two, step=4)
    seen = [entry["sample"] for entry in read_ledger(one / "ledger/rank-0.jsonl")]
    assert [number for batch in seen for number in batch] == list(range(32))


def stop_one(runs: Runs, ranks: list[int], run_dir: Path) -> None:
    """Send a signal to the second rank alone; all have to leave in time."""
    sent = time.monotonic()
    os.kill(ranks[1], signal.SIGTERM)
    assert [runs.wait(pid) for pid in ranks] == [EXIT_INTERRUPTED] * 2, (run_dir / "log").read_text()[-3000:]
    assert time.monotonic() - sent < LIMIT_S


def test_every_rank_stops_where_one_is_asked_to(runs: Runs, tmp_path: Path):
    ranks = start_ranks(runs, tmp_path, runs.start_tiny, "--trainer.max_steps=400")
    for pid in ranks:
        runs.wait_for(lambda: step_reached(tmp_path) >= 5, pid)
    stop_one(runs, ranks, tmp_path)
    ledgers = [read_ledger(tmp_path / f"ledger/rank-{rank}.jsonl") for rank in range(2)]
    assert len(ledgers[0]) == len(ledgers[1]) == newest_step(tmp_path)
    seen = sorted(number for ledger in ledgers for entry in ledger for number in entry["sample"])
    assert seen == list(range(8 * newest_step(tmp_path)))


def test_every_rank_leaves_a_long_validation_and_begins_it_anew(runs: Runs, tmp_path: Path):
    steps = "--trainer.max_steps=30"
    ranks = start_ranks(runs, tmp_path, runs.start_tiny, steps, "--model.init_args.slow_validation_s=7")
    for pid in ranks:
        runs.wait_for(lambda: step_reached(tmp_path) == 25, pid)
    time.sleep(1)  # in the first of three batches of the validation
    stop_one(runs, ranks, tmp_path)
    assert newest_step(tmp_path) == 25
    assert "validated" not in (tmp_path / "log").read_text()
    ranks = start_ranks(runs, tmp_path, runs.start_tiny, steps)
    assert [runs.wait(pid) for pid in ranks] == [0, 0], (tmp_path / "log").read_text()[-3000:]
    assert (tmp_path / "log").read_text().count("validated at step 25") == 2  # by either rank


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero2"])
def test_the_overlays_strategies_build_as_far_as_this_machine_lets_them(name: str):
    import yaml
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    given = yaml.safe_load((ROOT / f"configs/trainer/{name}.yaml").read_text())["trainer"]["strategy"]
    kind = __import__("lightning.pytorch.strategies", fromlist=["x"]).__dict__[given["class_path"].rpartition(".")[2]]
    if name == "deepspeed_zero2" and not __import__("importlib.util").util.find_spec("deepspeed"):
        with pytest.raises(MisconfigurationException, match="you must have DeepSpeed installed"):
            kind(**given["init_args"])
        return
    strategy = kind(**given["init_args"])
    if name == "ddp":
        assert Trainer(strategy=strategy, accelerator="cpu", devices=2, logger=False).world_size == 2
    elif not torch.cuda.is_available():
        with pytest.raises((ValueError, RuntimeError, MisconfigurationException), match=r"(?i)cuda|gpu"):
            Trainer(strategy=strategy, accelerator="cpu", devices=1, logger=False)
