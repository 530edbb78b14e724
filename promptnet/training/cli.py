"""The command line of training: LightningCLI, with runs that go on where they stopped when the command is repeated."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger


class TrainingCLI(LightningCLI):
    """`fit` resumes by itself from the newest checkpoint in the run's folder (`trainer.default_root_dir`)."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One option of our own: how many threads a process may use."""
        parser.add_argument("--threads", type=int, default=0, help="torch threads a process; 0 leaves torch's choice")

    def before_fit(self) -> None:
        """Set threads, find the checkpoint to go on from."""
        config = self.config["fit"]
        if config["threads"] > 0:
            torch.set_num_threads(config["threads"])
        torch.set_flush_denormal(True)
        newest = newest_checkpoint(Path(self.trainer.default_root_dir))
        if config.get("ckpt_path") is None and newest is not None:
            self.config["fit"]["ckpt_path"] = str(newest)
            self.config_init["fit"]["ckpt_path"] = str(newest)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint below a run's folder, None where there is none."""
    checkpoints = sorted(run_dir.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return checkpoints[-1] if checkpoints else None


def run_logger(save_dir: str) -> TensorBoardLogger:
    """TensorBoard files directly in the run's folder, one place whether or not the run was interrupted."""
    return TensorBoardLogger(save_dir=save_dir, name="", version="tensorboard")


def main() -> None:
    """Entry point of train.py."""
    TrainingCLI(save_config_kwargs={"overwrite": True})
