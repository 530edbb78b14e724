"""The command line of training: LightningCLI, with runs that go on where they stopped when the command is repeated.

One option, `run_dir`, says where everything of a run lives: checkpoints, TensorBoard files, the resolved config.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from promptnet.training.checkpoints import AtomicCheckpointIO, newest_checkpoint


class TrainingCLI(LightningCLI):
    """`fit` resumes by itself from the newest checkpoint in the run's folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options, beside `model`, `data` and `trainer`."""
        parser.add_argument(
            "--run_dir", type=str, required=True, help="folder of the run; repeat the command to resume"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.every_n_train_steps": 250, "checkpoint.save_top_k": 1})
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=lambda run_dir: f"{run_dir}/checkpoints")
        parser.add_argument("--threads", type=int, default=0, help="torch threads a process; 0 leaves torch's choice")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, its files in the run's folder."""
        config = self.config["fit"] if self.subcommand else self.config
        run_dir = config["run_dir"]
        if config["threads"] > 0:
            torch.set_num_threads(config["threads"])
        torch.set_flush_denormal(True)  # small CPU models crawl through denormal numbers otherwise
        if config["trainer"]["logger"] is None:
            kwargs["logger"] = TensorBoardLogger(run_dir, name="", version="tensorboard", default_hp_metric=False)
        kwargs |= {"default_root_dir": run_dir, "plugins": [AtomicCheckpointIO()]}
        # The data modules share their stream among the ranks themselves (promptnet.datasets.stream).
        return super().instantiate_trainer(use_distributed_sampler=False, **kwargs)

    def before_fit(self) -> None:
        """Find the checkpoint to go on from."""
        newest = newest_checkpoint(self.config["fit"]["run_dir"])
        if self.config_init["fit"].get("ckpt_path") is None and newest is not None:
            self.config_init["fit"]["ckpt_path"] = str(newest)
        self.config_init["fit"]["weights_only"] = True  # checkpoints are tensors and numbers, never pickled code


def main() -> None:
    """Entry point of train.py."""
    TrainingCLI(save_config_kwargs={"overwrite": True})
