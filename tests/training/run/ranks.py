"""Two processes as torchrun starts them, and what their runs are compared with."""

import socket
from collections.abc import Callable
from pathlib import Path

import torch

from tests.training.conftest import ROOT
from tests.training.forked import Runs, torchrun_rank
from tests.training.run.kill_run import state_at

CALLBACKS = """[
 {class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.9}},
 {class_path: tests.training.run.ledger.SampleLedger, init_args: {folder: FOLDER}}]"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def slurm_task(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What srun tells each task of a job on one machine."""
    numbers = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": num_ranks, "SLURM_NODEID": 0}
    numbers |= {"SLURM_NTASKS_PER_NODE": num_ranks, "SLURM_NNODES": 1, "SLURM_JOB_ID": 4711, "MASTER_PORT": port}
    words = {"SLURM_JOB_NAME": "pretraining", "SLURM_NODELIST": "127.0.0.1"}
    return {name: str(number) for name, number in numbers.items()} | words


Environment = Callable[[int, int, int], dict[str, str]]


def start_ranks(
    runs: Runs, run_dir: Path, start: Callable[..., int], *options: str, told: Environment = torchrun_rank
) -> list[int]:
    """Two processes as torchrun starts them, or `told` what another launcher tells them."""
    port, ddp = free_port(), f"--config={ROOT / 'configs/trainer/ddp.yaml'}"
    two = (ddp, "--trainer.accelerator=cpu", "--trainer.devices=2")
    return [start(run_dir, *two, *options, environment=told(rank, 2, port)) for rank in range(2)]


def farthest(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """Largest difference of any weight."""
    assert expected.keys() == found.keys()
    return max(float((expected[name] - found[name]).abs().max()) for name in expected)


def assert_alike(one: Path, other: Path, step: int) -> None:
    """Assert that two runs came to the same weights, averages and moments at a step, to 1e-6."""
    expected, found = state_at(one, step), state_at(other, step)
    for part in ("state_dict", "current_model_state"):
        assert farthest(expected[part], found[part]) < 1e-6, part
    moments = [state["optimizer_states"][0]["state"] for state in (expected, found)]
    assert farthest(*[{str(k): value["exp_avg"] for k, value in moment.items()} for moment in moments]) < 1e-6
