"""What a run says of itself on the console, and that a run without numbers ends with an error."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import nn

from promptnet.training.callbacks import GradientWatch, MetricsFile, StepProgress
from promptnet.training.callbacks.step_progress import duration
from promptnet.training.cli import _with_ours
from promptnet.training.stage import save_half
from tests.training.forked import Runs
from tests.training.tiny_run import TinyData, TinyStage

LINE = r"step (\d+)/6  loss [\d.]+  [\d.e+]+ (steps/s|s/step)  .* left"


def test_a_log_file_gets_a_plain_line_every_few_steps(runs: Runs, tmp_path: Path):
    options = ("--trainer.max_steps=6", "--trainer.val_check_interval=6", "--trainer.log_every_n_steps=2")
    given = (*options, "--trainer.accumulate_grad_batches=2", "--trainer.enable_progress_bar=true")
    assert runs.wait(runs.start_tiny(tmp_path, *given)) == 0, (tmp_path / "log").read_text()[-2000:]
    log = (tmp_path / "log").read_text()
    assert [found[0] for found in re.findall(f"^{LINE}$", log, re.MULTILINE)] == ["2", "4", "6"]
    assert re.search(r"^step 3  val/loss [\d.]+$", log, re.MULTILINE)
    assert "Epoch" not in log
    assert "\r" not in log


def test_a_terminal_gets_a_bar_of_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress, seen = StepProgress(), []
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)

    class Look(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            (task,) = progress._bar.tasks  # type: ignore[union-attr]
            seen.append((task.completed, task.total))

    callbacks = [progress, Look()]
    trainer = L.Trainer(max_steps=70, accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, **quiet)
    trainer.fit(TinyStage(width=8, pause_s=0.0), TinyData(num_workers=0))
    assert seen == [(step, 70) for step in range(1, 71)]  # beyond the 15 batches of an epoch, too
    assert progress._bar is None
    assert "steps/s" not in capsys.readouterr().out


def test_time_left_counts_this_processs_steps(monkeypatch: pytest.MonkeyPatch):
    progress = StepProgress()
    progress._first_step, progress._step, progress._started_s = 100, 150, 10.0
    monkeypatch.setattr("time.monotonic", lambda: 35.0)
    assert progress.line(1150, "0.5") == "step 150/1150  loss 0.5  2 steps/s  8 min 20 s left"
    progress._step = 105
    assert progress.line(-1, "0.5") == "step 105  loss 0.5  5 s/step"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.2, "1 min 0 s"), (3599, "59 min 59 s"), (34500, "9 h 35 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said


def test_every_run_has_what_it_needs_and_keeps_its_own():
    assert [type(each) for each in _with_ours(None, True)] == [MetricsFile, GradientWatch, StepProgress]
    own = [GradientWatch(patience=3), TQDMProgressBar()]
    assert [type(each) for each in _with_ours(own, True)] == [GradientWatch, type(own[1]), MetricsFile]
    assert not any(isinstance(each, StepProgress) for each in _with_ours(None, False))


class NotANumber(TinyStage):
    """Its loss is none from the third step on."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (float("nan") if self.global_step >= 2 else 1.0)


def test_a_run_without_numbers_ends_with_an_error_and_good_weights(runs: Runs, tmp_path: Path):
    model = f"--model={__name__}.NotANumber"
    options = ("--trainer.max_steps=40", "--checkpoint.every_n_train_steps=2", model, "--model.init_args.width=8")
    assert runs.wait(runs.start_tiny(tmp_path, *options)) == 1
    log = (tmp_path / "log").read_text()
    assert "train.py: step 12: the gradients were not finite 10 times in a row" in log, log[-2000:]
    assert "Traceback" not in log
    for path in (tmp_path / "checkpoints").rglob("state.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_are_no_numbers_are_not_written(value: float, tmp_path: Path):
    class Saved(nn.Linear):
        def save_pretrained(self, folder: str) -> None:
            Path(folder).touch()

    layer = Saved(2, 2)
    save_half(layer, tmp_path / "good")
    assert (tmp_path / "good").exists()
    layer.float().weight.data[0, 1] = value
    with pytest.raises(ValueError, match="1 tensors of Saved, weight the first"):
        save_half(layer, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
