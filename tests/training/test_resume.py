"""Kill a run anywhere and repeat the command: the weights come out bit for bit as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from tests.training.conftest import train

CASES = {
    "tiny/unet": ("--model.init_args.base_dir={base}", "--model.init_args.start_from={base}/unet"),
    "pretrain/tiny": ("--model.init_args.base_dir={base}", "--model.init_args.export_dir={base}/promptnet"),
}
EXPORTED = {"tiny/unet": "unet", "pretrain/tiny": "promptnet"}


def _exported(base: Path, config: str) -> bytes:
    return (base / EXPORTED[config] / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("config", list(CASES))
def test_killed_and_repeated_is_bit_identical(config: str, random_base: Path, picture_cache: Path, tmp_path: Path):
    base = tmp_path / "base"
    _copy(random_base, base)
    options = [option.format(base=base) for option in CASES[config]]
    options += ["--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=3"]

    whole = train(config, tmp_path / "whole", picture_cache, *options)
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected = _exported(base, config)
    if EXPORTED[config] == "unet":
        _copy(random_base / "unet", base / "unet")  # the run has overwritten what it started from

    kill = ["--trainer.callbacks+=tests.training.killer.KillAt", "--trainer.callbacks.step=5"]
    killed = train(config, tmp_path / "killed", picture_cache, *options, *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert list((tmp_path / "killed/checkpoints").glob("*step=4.ckpt"))

    again = train(config, tmp_path / "killed", picture_cache, *options)
    assert again.returncode == 0, again.stderr[-2000:]
    assert _exported(base, config) == expected


def _copy(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
