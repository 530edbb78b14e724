"""The command line of training: LightningCLI, with runs that go on where they stopped when the command is repeated.

One option, `run_dir`, says where everything of a run lives: checkpoints, TensorBoard files, metrics.jsonl, the resolved
config, and the lock that keeps a second process out.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from promptnet.training.callbacks.gradient_watch import GradientWatch, TrainingDiverged
from promptnet.training.callbacks.metrics_file import MetricsFile
from promptnet.training.callbacks.step_progress import StepProgress
from promptnet.training.config_checks import check_config, check_config_files, check_run_dir
from promptnet.training.run.checkpoints import (
    FOLDER,
    CheckpointError,
    RunCheckpointIO,
    newest_checkpoint,
    step_of,
    sweep,
)
from promptnet.training.run.ema import average_where_it_trains, leave_out_averaging
from promptnet.training.run.finished import Finished, export_of, read_finished
from promptnet.training.run.lock import RunLock, RunTakenError
from promptnet.training.run.record import RunChanged, RunRecord, options_of
from promptnet.training.run.saving import SaveState
from promptnet.training.run.trainer import RunTrainer

_PACKAGE = Path(__file__).parents[1]


class TrainingCLI(LightningCLI):
    """`fit` resumes by itself from the newest checkpoint in the run's folder that verifies."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trainer_class=RunTrainer, **options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`: the stages validate while they train, and have nothing to test or predict."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check, and replace `~` at the beginning of paths: in YAML files no shell does so."""
        check_config_files(sys.argv[1:] if args is None else [])
        super().parse_arguments(parser, args)
        for name, value in self.config.items():
            if isinstance(value, str) and value.startswith("~/"):
                self.config[name] = os.path.expanduser(value)
        fit = self.config.get("fit", self.config)
        check_config(dict(fit.items()))
        check_run_dir(Path(fit["run_dir"]))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options, beside `model`, `data` and `trainer`."""
        parser.add_argument(
            "--run_dir", type=str, required=True, help="folder of the run; repeat the command to resume"
        )
        parser.add_lightning_class_args(SaveState, "checkpoint")
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=lambda run_dir: f"{run_dir}/{FOLDER}")
        parser.add_argument("--threads", type=int, default=0, help="torch threads a process; 0 leaves torch's choice")
        parser.add_argument(
            "--dry-run", action="store_true", help="print the resolved config and what the run will need, and stop"
        )
        parser.add_argument(
            "--redo_end", action="store_true", help="of a finished run, do the last steps and its outcome again"
        )

    def instantiate_classes(self) -> None:
        """Build everything; in a dry run, say what it will need and stop."""
        config = self.config.get(str(self.subcommand), self.config)
        if config["dry_run"]:
            from promptnet.training.dry_run.plan import dry_run

            dry_run(config, self._parser(self.subcommand).dump(config, skip_none=False))
            sys.exit(0)
        self._leave_if_finished(config)
        super().instantiate_classes()

    def _leave_if_finished(self, config: Any) -> None:
        """End a repeated command that has nothing left to do, before anything is built."""
        run_dir, max_steps = Path(config["run_dir"]), int(config["trainer"]["max_steps"])
        found = None if config["redo_end"] else read_finished(run_dir)
        if found is not None and found.covers(max_steps, export_of(config["model"].as_dict())):
            print(found.message(run_dir))
            sys.exit(0)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, its files in the run's folder."""
        config = self.config["fit"] if self.subcommand else self.config
        run_dir = config["run_dir"]
        if config["threads"] > 0:
            torch.set_num_threads(config["threads"])
        torch.set_flush_denormal(True)  # small CPU models crawl through denormal numbers otherwise
        if config["trainer"]["logger"] is None:
            kwargs["logger"] = TensorBoardLogger(run_dir, name="", version="tensorboard", default_hp_metric=False)
        plugins: list[Any] = [RunCheckpointIO()]
        if SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # its requeueing saves in the middle of a step
        kwargs |= {"default_root_dir": run_dir, "plugins": plugins}
        built = self.config_init["fit"] if self.subcommand else self.config_init
        record = RunRecord(options_of(config.as_dict()))
        shows_progress = config["trainer"]["enable_progress_bar"] is not False
        kwargs["callbacks"] = [*_with_ours(built["trainer"]["callbacks"], shows_progress), record]
        # The data modules share their stream among the ranks themselves (promptnet.datasets.stream).
        trainer = super().instantiate_trainer(use_distributed_sampler=False, **kwargs)
        leave_out_averaging(trainer)
        average_where_it_trains(trainer)
        return trainer

    def before_fit(self) -> None:
        """Take the run's folder (first rank alone), and find the checkpoint to go on from."""
        config, is_first = self.config_init["fit"], self.trainer.is_global_zero
        run_dir = Path(config["run_dir"])
        if is_first:
            RunLock(run_dir).take()
            sweep(run_dir)
        if config.get("ckpt_path") is None:
            last_step = self.trainer.max_steps if self.trainer.max_steps > 0 else None
            with warnings.catch_warnings():
                if not is_first:
                    warnings.simplefilter("ignore")  # the first rank names what is damaged
                newest = newest_checkpoint(run_dir, below_step=last_step)
            config["ckpt_path"] = None if newest is None else str(newest)
            self._check_step(newest, last_step)
        elif not Path(config["ckpt_path"]).resolve().is_relative_to(run_dir.resolve()):
            raise ValueError(
                f"--ckpt_path {config['ckpt_path']} is not in this run's folder {run_dir}: a run goes on from its own "
                "checkpoints alone. To begin with another run's weights, give its exported folder to the model "
                "(start_from)."
            )
        config["weights_only"] = True  # checkpoints are tensors and numbers, never pickled code

    def _check_step(self, checkpoint: Path | None, max_steps: int | None) -> None:
        """Refuse a run that is beyond its own end: it would do nothing, and say nothing."""
        step = None if checkpoint is None else step_of(checkpoint.parent)
        if step is not None and max_steps is not None and step > max_steps:
            raise RunChanged(
                f"the run has {step} steps behind it, more than --trainer.max_steps {max_steps}: raise that, or begin "
                "another run with another --run_dir"
            )

    def after_fit(self) -> None:
        """Note that the run has come to its end."""
        config, trainer = self.config["fit"], self.trainer
        if trainer.is_global_zero and 0 < trainer.max_steps <= trainer.global_step:
            exported = export_of(config["model"].as_dict())
            Finished(trainer.global_step, exported).write(Path(config["run_dir"]))


def _error_of_ours(error: BaseException | None) -> ValueError | None:
    """Return the first error in the chain of causes that was raised in this package.

    jsonargparse puts the whole config around it.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and frames and Path(frames[-1].filename).is_relative_to(_PACKAGE):
            return error
        error = error.__cause__
    return None


def _with_ours(named: list[Callback] | Callback | None, shows_progress: bool) -> list[Callback]:
    """The config's callbacks, and those that every run needs: where the config names one of the kind, its own.

    Without `GradientWatch` a run whose loss is not a number would go on to its end and replace every checkpoint.
    """
    callbacks = [named] if isinstance(named, Callback) else list(named or [])
    wanted: list[tuple[type[Callback], type[Callback]]] = [(MetricsFile, MetricsFile), (GradientWatch, GradientWatch)]
    if shows_progress:
        wanted.append((ProgressBar, StepProgress))
    missing = [ours() for kind, ours in wanted if not any(isinstance(callback, kind) for callback in callbacks)]
    return [*callbacks, *missing]


def train(words: list[str]) -> None:
    """Run what `train.py` with these words runs, from inside a program: errors are raised.

    Raises:
        ValueError: a word's value is refused, or another process has the run's folder.
        CheckpointError: a checkpoint could not be written.
        TrainingDiverged: the loss is no number.
    """
    TrainingCLI(args=words, save_config_kwargs={"overwrite": True})


def main() -> None:
    """Entry point of train.py. Status 75 says that the run was asked to stop and has saved: repeat the command.

    An error of the user's is one line; with PROMPTNET_DEBUG=1 its traceback.
    """
    try:
        TrainingCLI(save_config_kwargs={"overwrite": True})
    except (CheckpointError, RunChanged, RunTakenError, TrainingDiverged) as error:
        sys.exit(f"train.py: {error}")
    except ValueError as error:
        ours = _error_of_ours(error)
        if ours is None or os.environ.get("PROMPTNET_DEBUG", "0") not in ("", "0"):
            raise
        sys.exit(f"train.py: {' '.join(str(ours).split())}")
