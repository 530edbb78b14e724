"""Runs of train.py that are stopped by SIGTERM and go on: what a preempted job on a cluster goes through."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from random_base import write_random_base

from promptnet.training.run.checkpoints import newest_checkpoint
from promptnet.training.run.manifest import read_manifest
from promptnet.training.run.preemption import EXIT_INTERRUPTED

ROOT = Path(__file__).parents[2]
AVERAGED = ("--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging",)
WAIT_S = 300  # the part's own time limit is shorter on a GPU


def base_of(size: str, device: str, folder: Path) -> Path:
    """Return a folder with a base model: Stable Diffusion 2's shape with random weights, made once; or the embedded."""
    if size == "toy":
        return ROOT / "checkpoints" / "tiny"
    base = folder / "random-base"
    if not (base / "complete").exists():
        write_random_base(base, "sd2", torch.device(device))
        (base / "complete").touch()
    return base


@dataclass(frozen=True)
class StoppedRun:
    """What stopping a run and repeating its command showed.

    Args:
        step: optimiser steps when it was stopped.
        stop_s: seconds from SIGTERM to the end, with a checkpoint of them.
        checkpoint_gib: its size.
        resume_s: seconds of the repeated command, to its first further step and its end.
    """

    step: int
    stop_s: float
    checkpoint_gib: float
    resume_s: float


class TrainingRun:
    """A pretraining run on random features.

    Args:
        run_dir: its folder; empty, or not there.
        base: folder of the base model.
        device: "cuda" or "cpu".
        batch_size: of a step.
        options: further ones of train.py.
    """

    def __init__(self, run_dir: Path, base: Path, device: str, batch_size: int, options: Sequence[str]) -> None:
        on_gpu = device.startswith("cuda")
        self.run_dir = run_dir
        self.words = [sys.executable, "train.py", "fit", *options, f"--run_dir={run_dir}"]
        self.words += ["--model=promptnet.training.pretrain.stage.PretrainStage"]
        self.words += [f"--model.base_dir={base}", f"--model.export_dir={run_dir / 'encoder'}"]
        self.words += [f"--model.region_kernel_size={8 if on_gpu else 1}"]
        self.words += ["--data=random_features.RandomFeatures", f"--data.base_dir={base}"]
        self.words += [f"--data.batch_size={batch_size}", "--checkpoint.every_n_train_steps=1000000"]
        self.words += [f"--trainer.accelerator={'cuda' if on_gpu else 'cpu'}", "--trainer.devices=1"]
        self.words += [f"--trainer.precision={'bf16-mixed' if on_gpu else '32-true'}", "--trainer.log_every_n_steps=1"]
        self.words += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        self.words += ["--trainer.logger=false", "--seed_everything=0"]

    def start(self, max_steps: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.words, f"--trainer.max_steps={max_steps}"], cwd=ROOT)

    def steps(self) -> list[int]:
        """Return the steps that are logged so far."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}") and "train/loss" in line]

    def stop_and_resume(self, steps: int) -> StoppedRun:
        """Stop the run after so many steps, repeat the command for one step more, and check what each left.

        Raises:
            RuntimeError: a status, a step or a checkpoint is not what it should be.
        """
        process = self.start(10**6)
        _wait_for(lambda: len(self.steps()) >= steps, process)
        begin_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _check(process.wait(WAIT_S) == EXIT_INTERRUPTED, f"SIGTERM ended the run with status {process.returncode}")
        stop_s = time.monotonic() - begin_s
        newest = newest_checkpoint(self.run_dir)
        if newest is None:
            raise RuntimeError("the stopped run left no whole checkpoint")
        manifest = read_manifest(newest.parent)
        before = self.steps()  # the step at whose end it saves is not logged
        _check(manifest.step - max(before) in (0, 1), f"it saved step {manifest.step}, and logged {max(before)}")
        begin_s = time.monotonic()
        status = self.start(manifest.step + 1).wait(WAIT_S)
        _check(status == 0, f"the repeated command ended with status {status}")
        _check(self.steps() == [*before, manifest.step + 1], f"it logged the steps {self.steps()}")
        _check(any((self.run_dir / "encoder").glob("*.safetensors")), "it wrote no encoder")
        return StoppedRun(manifest.step, stop_s, manifest.num_bytes / 2**30, time.monotonic() - begin_s)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with status {process.returncode} before it was stopped")
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the run did not get there in {WAIT_S} s")
        time.sleep(0.05)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)
