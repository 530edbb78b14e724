"""metrics.jsonl: a line for everything logged, cut where a resumed run writes again, never torn."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from promptnet.training.callbacks import GradientWatch, MetricsFile
from promptnet.training.callbacks.metrics_file import append_metrics, cut_metrics, metric_line, read_metrics, values_of


class Line(L.LightningModule):
    """y = w x, and a loss to log."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.linear(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.linear(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data() -> DataLoader[Any]:
    rows = torch.linspace(-1, 1, 24).reshape(12, 2)
    return DataLoader(TensorDataset(rows), batch_size=2)


def fit(folder: Path, *callbacks: Any, model: Any = None, resume: Any = None, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    chosen = {"max_steps": 6, "log_every_n_steps": 1, "logger": False, **quiet, **options}
    trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, callbacks=list(callbacks), **chosen)
    trainer.fit(model or Line(), data(), data(), ckpt_path=resume, weights_only=True)
    return trainer


def test_every_logged_scalar_gets_a_line_with_step_and_time_without_any_other_logger(tmp_path: Path):
    fit(tmp_path, MetricsFile(), val_check_interval=3)
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in values_of(entries, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in values_of(entries, "val/loss")] == [3, 6]
    assert all(entry["wall_time_s"] > 1e9 for entry in entries)
    times_s = [entry["wall_time_s"] for entry in entries]
    assert times_s == sorted(times_s)


def test_a_resumed_run_cuts_what_it_writes_again_and_keeps_the_rest(tmp_path: Path):
    trainer = fit(tmp_path, MetricsFile(), max_steps=4)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    before = (tmp_path / "metrics.jsonl").read_text()
    for step in (5, 6):
        append_metrics(tmp_path / "metrics.jsonl", step, {"train/loss": 99.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')  # killed in the middle of a line
    fit(tmp_path, MetricsFile(), resume=tmp_path / "four.ckpt")
    after = (tmp_path / "metrics.jsonl").read_text()
    assert after.startswith(before)
    losses = values_of(map(json.loads, after.splitlines()), "train/loss")
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert 99.0 not in [value for _, value in losses]


def test_a_run_started_anew_in_an_old_folder_keeps_no_line_of_the_old_one(tmp_path: Path):
    append_metrics(tmp_path / "metrics.jsonl", 3, {"train/loss": 99.0})
    fit(tmp_path, MetricsFile(), max_steps=2)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_is_not_finite_is_written_as_valid_json_and_read_back(tmp_path: Path):
    line = metric_line(1, {"a": math.nan, "b": -math.inf, "c": 0.5}, wall_time_s=2.0)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    entry = json.loads(line, parse_constant=refuse)
    assert entry == {"step": 1, "wall_time_s": 2.0, "a": "nan", "b": "-inf", "c": 0.5}
    (tmp_path / "m.jsonl").write_text(line)
    (read,) = read_metrics(tmp_path / "m.jsonl")
    assert math.isnan(read["a"])
    assert read["b"] == -math.inf


def test_cutting_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(metric_line(step, {"a": 1.0}, 0.0) for step in range(5)))
    whole = path.read_text()

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", disk_full)
        with pytest.raises(OSError, match="No space left"):
            cut_metrics(path, 2)
    assert path.read_text() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]
    assert cut_metrics(path, 2) == 2
    assert [entry["step"] for entry in read_metrics(path)] == [0, 1, 2]
    stamp = path.stat().st_mtime_ns
    assert cut_metrics(path, 2) == 0
    assert path.stat().st_mtime_ns == stamp  # nothing to cut, nothing written


# --- gradients ----------------------------------------------------------------------------------------------------


class Poisoned(Line):
    """A loss that is not finite at some steps."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad = bad

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (math.nan if self.trainer.global_step in self.bad else 1.0)


def test_the_share_of_clipped_steps_and_the_norm_before_clipping(tmp_path: Path):
    fit(tmp_path, GradientWatch(), MetricsFile(), gradient_clip_val=1e-4)
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert all(norm > 1e-4 for _, norm in values_of(entries, "gradients/norm"))
    assert values_of(entries, "gradients/clipped_share")[-1] == (6, 1.0)
    assert values_of(entries, "gradients/clipped_steps")[-1] == (6, 6.0)

    loose = fit(tmp_path, GradientWatch(), MetricsFile(), gradient_clip_val=1e4)
    assert float(loose.callback_metrics["gradients/clipped_share"]) == 0.0
    by_value = fit(tmp_path, GradientWatch(), gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    assert float(by_value.callback_metrics["gradients/clipped_share"]) == 1.0


def test_steps_with_bad_gradients_are_named_counted_and_not_taken(tmp_path: Path):
    model = Poisoned({2, 4})
    with pytest.warns(UserWarning, match=r"step 3: .*linear\.weight.*1 such steps in this run, 1 in a row"):
        fit(tmp_path, GradientWatch(patience=2), MetricsFile(), model=model)
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    assert values_of(read_metrics(tmp_path / "metrics.jsonl"), "gradients/nonfinite_steps")[-1] == (6, 2.0)


def test_a_row_of_bad_steps_ends_the_run_with_advice(tmp_path: Path):
    watch = GradientWatch(patience=3)
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(RuntimeError, match=r"step 5: .* 3 times in a row .*linear\.weight.*learning_rate"),
    ):
        fit(tmp_path, watch, model=Poisoned({2, 3, 4}))
    assert watch.num_nonfinite == 3


def test_counts_survive_a_checkpoint(tmp_path: Path):
    with pytest.warns(UserWarning, match="not finite"):
        trainer = fit(tmp_path, GradientWatch(), MetricsFile(), model=Poisoned({1}), max_steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    resumed = fit(tmp_path, GradientWatch(), MetricsFile(), model=Line(), resume=tmp_path / "three.ckpt")
    assert float(resumed.callback_metrics["gradients/nonfinite_steps"]) == 1.0


def test_watching_changes_no_weight(tmp_path: Path):
    weights = []
    for callbacks in ([], [GradientWatch(), MetricsFile()]):
        torch.manual_seed(3)
        model = Line()
        fit(tmp_path, *callbacks, model=model, gradient_clip_val=0.1)
        weights.append(torch.cat([value.detach().flatten() for value in model.parameters()]))
    assert torch.equal(*weights)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="patience=0"):
        GradientWatch(patience=0)
