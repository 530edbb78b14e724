"""What train.py adds to a run, whatever its config says."""

from pathlib import Path

import pytest

from promptnet.training.callbacks.metrics_file import read_metrics, values_of
from promptnet.training.cli import main
from tests.base_models import write_base
from tests.training.conftest import ROOT
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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.base_dir=nowhere", "'nowhere' has no 'vae' that AutoencoderKL could be loaded from"),
        ("--model.init_args.min_snr_gamma=-1", "min_snr_gamma=-1.0 must be above 0"),
        ("--data.init_args.data_dir=nowhere", "nowhere"),
    ],
)
def test_a_value_that_cannot_be_is_said_in_one_line(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not among the whole config, which jsonargparse puts around it."""
    given = [f"--config={ROOT / 'configs/pretrain/sd15.yaml'}", f"--run_dir={tmp_path}"]
    base = write_base(tmp_path / "base", "sd")
    given += [f"--model.init_args.base_dir={base}", f"--model.init_args.vision_id={base / 'vision'}"]
    monkeypatch.setattr("sys.argv", ["train.py", "fit", *given, option])
    with pytest.raises(SystemExit) as refusal:
        main()
    said = str(refusal.value.code)
    assert said.startswith("train.py: ")
    assert message in said
    assert "\n" not in said
    assert len(said) < 400
