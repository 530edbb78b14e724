"""What train.py adds to a run, whatever its config says."""

import sys
from pathlib import Path
from typing import Any

import pytest

from promptnet.training.callbacks.metrics_file import read_metrics, values_of
from promptnet.training.cli import TrainingCLI, main
from promptnet.training.config_checks import check_run_dir
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


@pytest.mark.parametrize("below", ["", "deeper/run"])
def test_a_run_that_cannot_have_its_folder_is_refused_in_one_line(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    given = [f"--config={ROOT / 'configs/pretrain/tiny.yaml'}", f"--run_dir={tmp_path / 'file' / below}"]
    monkeypatch.setattr("sys.argv", ["train.py", "fit", *given])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert f"{tmp_path / 'file'} is a file" in str(refusal.value.code)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed_everything=-1", "seed_everything=-1 must be a whole number from 0 to 4294967295"),
        ("--seed_everything=9223372036854775808", "seed_everything=9223372036854775808 must be"),
        ("--trainer.max_steps=-2", "trainer.max_steps=-2 must be at least 0"),
        ("--data.init_args.batch_size=0", "data.init_args.batch_size=0 must be at least 1"),
        ("--data.init_args.num_images=0", "data.init_args.num_images=0 must be at least 1"),
        ("--model.init_args.learning_rate=.nan", "model.init_args.learning_rate=nan must be a finite number"),
        ("--model.init_args.learning_rate=-1e-3", "model.init_args.learning_rate=-0.001 must be"),
        ("--model.init_args.base_dir=null", "model.init_args.base_dir is not set"),
        ("--model.init_args.base_dir=", "model.init_args.base_dir is not set"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_built(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"--config={ROOT / 'configs/pretrain/tiny.yaml'}", f"--run_dir={tmp_path}", option]
    monkeypatch.setattr(TrainingCLI, "instantiate_classes", lambda _: pytest.fail("it is built"))
    monkeypatch.setattr("sys.argv", ["train.py", "fit", *given])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert str(refusal.value.code).startswith(f"train.py: {message}")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_config_in_another_encoding_is_named(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "configs/pretrain/tiny.yaml").read_text() + "# Zoé\n"
    (tmp_path / "config.yaml").write_text(text, encoding)
    monkeypatch.setattr("sys.argv", ["train.py", "fit", f"--config={tmp_path / 'config.yaml'}"])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert f"--config {tmp_path / 'config.yaml'} is no text in UTF-8" in str(refusal.value.code)


def test_nobody_else_may_write_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be written"):
        check_run_dir(tmp_path / "run")


def test_a_home_is_meant_in_configs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = (ROOT / "configs/pretrain/tiny.yaml").read_text()
    config = config.replace("run_dir: outputs", "run_dir: ~").replace("export_dir: outputs", "export_dir: ~")
    (tmp_path / "home.yaml").write_text(config)
    seen: list[Any] = []
    monkeypatch.setattr(TrainingCLI, "instantiate_classes", lambda cli: (seen.append(cli.config), sys.exit(0)))
    monkeypatch.setattr("sys.argv", ["train.py", "fit", f"--config={tmp_path / 'home.yaml'}"])
    with pytest.raises(SystemExit):
        main()
    found = seen[0]["fit"]
    assert found["run_dir"] == str(tmp_path / "runs/tiny-promptnet")
    assert found["checkpoint"]["dirpath"] == str(tmp_path / "runs/tiny-promptnet/checkpoints")
    assert found["model"]["init_args"]["export_dir"] == str(tmp_path / "checkpoints/tiny/promptnet")
