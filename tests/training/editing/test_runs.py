"""Edits learned by train.py: killed and repeated, and on two processes, with the outcome of an undisturbed run."""

import signal
from pathlib import Path

import pytest
import torch

from promptnet.inference.editing.card import EditCard
from tests.training.conftest import ROOT
from tests.training.editing.edit_base import build_edit_base
from tests.training.forked import Runs
from tests.training.run.kill_run import newest_step
from tests.training.run.ranks import start_ranks


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model."""
    return build_edit_base(tmp_path_factory.mktemp("base"))


def learning(runs: Runs, base: Path):
    """Starts 4 iterations on four seeds; the card lies in the run's folder."""

    def start(run_dir: Path, *options: str, environment: dict[str, str] | None = None) -> int:
        run_dir.mkdir(exist_ok=True)
        given = [f"--config={ROOT / 'configs/disentangle/smile.yaml'}", f"--run_dir={run_dir}", "--threads=1"]
        given += [f"--model.init_args.base_dir={base}", f"--model.init_args.out={run_dir / 'card.safetensors'}"]
        given += ["--model.init_args.num_steps=3", "--data.init_args.num_seeds=4", "--trainer.max_steps=4"]
        given += ["--checkpoint.every_n_train_steps=2", "--trainer.enable_progress_bar=false"]
        given += ["--trainer.accelerator=cpu"]
        return runs.start(run_dir / "log", "fit", *given, *options, environment=environment)

    return start


def weights(run_dir: Path) -> torch.Tensor:
    return EditCard.load(run_dir / "card.safetensors").weights


FOUR = "--data.init_args.batch_size=4"


@pytest.fixture(scope="module")
def whole(runs: Runs, base: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What an undisturbed run learns."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.wait(learning(runs, base)(folder, FOUR)) == 0, (folder / "log").read_text()[-3000:]
    found = weights(folder)
    assert (found - torch.tensor([1.0, 0.0, 0.0])).abs().max() > 0.01
    return found


@pytest.mark.slow
def test_two_processes_learn_what_one_does(runs: Runs, base: Path, whole: torch.Tensor, tmp_path: Path):
    ranks = start_ranks(runs, tmp_path, learning(runs, base), "--data.init_args.batch_size=2")
    assert [runs.wait(pid) for pid in ranks] == [0, 0], (tmp_path / "log").read_text()[-3000:]
    torch.testing.assert_close(weights(tmp_path), whole, rtol=0, atol=1e-3)


def test_killed_and_repeated_it_learns_the_same(runs: Runs, base: Path, whole: torch.Tensor, tmp_path: Path):
    start, log = learning(runs, base), tmp_path / "log"
    kill = ["--trainer.callbacks+=tests.training.run.killer.KillAt", "--trainer.callbacks.step=3"]
    assert runs.wait(start(tmp_path, FOUR, *kill)) == -signal.SIGKILL, log.read_text()[-3000:]
    assert newest_step(tmp_path) == 2
    assert not (tmp_path / "card.safetensors").exists()
    assert runs.wait(start(tmp_path, FOUR)) == 0, log.read_text()[-3000:]
    assert torch.equal(weights(tmp_path), whole)
