"""What train.py adds to a run, whatever its config says."""

from pathlib import Path

import pytest

from promptnet.training.callbacks.metrics_file import read_metrics, values_of
from promptnet.training.cli import main
from tests.training.forked import TINY, Runs


def test_every_run_writes_its_metrics(whole_run: Path):
    assert "MetricsFile" not in TINY.read_text()
    losses = values_of(read_metrics(whole_run / "metrics.jsonl"), "val/loss")
    assert [step for step, _ in losses] == [25]


def test_a_config_that_names_the_file_gets_it_once_and_without_any_other_logger(runs: Runs, tmp_path: Path):
    named = "--trainer.callbacks+=promptnet.training.callbacks.MetricsFile"
    steps = ("--trainer.max_steps=2", "--trainer.val_check_interval=1", "--trainer.logger=false")
    assert runs.wait(runs.start_tiny(tmp_path, named, *steps)) == 0, (tmp_path / "log").read_text()[-2000:]
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in values_of(entries, "val/loss")] == [1, 2]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_no_stage_can_do_is_no_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["train.py", command, "--help"])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert refusal.value.code == 2
    assert "fit" in capsys.readouterr().err
