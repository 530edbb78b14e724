"""Kill a stage's run anywhere and repeat the command: the weights come out bit for bit as if nothing had happened."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.training.conftest import options_of
from tests.training.forked import Runs

CASES = {
    "tiny/vae": ("--model.init_args.export_dir={base}",),
    "tiny/clip": ("--model.init_args.export_dir={base}", "--model.init_args.tokenizer_captions=50"),
    "tiny/judge-validation": ("--model.init_args.export_dir={base}/judge", "--model.init_args.width=8"),
    "tiny/unet": ("--model.init_args.base_dir={base}", "--model.init_args.start_from={base}/unet"),
    "pretrain/tiny": ("--model.init_args.base_dir={base}", "--model.init_args.export_dir={base}/promptnet"),
}
EXPORTED = {
    "tiny/vae": "vae/diffusion_pytorch_model.safetensors",
    "tiny/clip": "image_encoder/model.safetensors",
    "tiny/judge-validation": "judge/diffusion_pytorch_model.safetensors",
    "tiny/unet": "unet/diffusion_pytorch_model.safetensors",
    "pretrain/tiny": "promptnet/diffusion_pytorch_model.safetensors",
}
STEPS = (
    "--trainer.max_steps=6",
    "--checkpoint.every_n_train_steps=2",
    "--trainer.val_check_interval=3",
    "--trainer.callbacks={class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.9}}",
)


def _taken(base: Path, config: str) -> bytes:
    """What a run has exported, which is then gone, so that the next run's cannot be mistaken for it."""
    weights = base / EXPORTED[config]
    content = weights.read_bytes()
    weights.unlink()
    return content


FAST_CASES = ("pretrain/tiny", "tiny/unet")


@pytest.mark.parametrize(
    "config", [name if name in FAST_CASES else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_killed_and_repeated_is_bit_identical(
    config: str, runs: Runs, random_base: Path, image_cache: Path, tmp_path: Path
):
    base = tmp_path / "base"
    shutil.copytree(random_base, base)

    def train(name: str, *options: str) -> int:
        given = [*options_of(config, tmp_path / name, image_cache), *STEPS]
        given += [option.format(base=base) for option in CASES[config]]
        return runs.wait(runs.start(tmp_path / f"{name}.log", "fit", *given, *options))

    assert train("whole") == 0, (tmp_path / "whole.log").read_text()[-2000:]
    expected = _taken(base, config)
    if config == "tiny/unet":
        shutil.copytree(random_base / "unet", base / "unet", dirs_exist_ok=True)  # the run has overwritten its start

    kill = ["--trainer.callbacks+=tests.training.run.killer.KillAt", "--trainer.callbacks.step=5"]
    assert train("killed", *kill) == -signal.SIGKILL, (tmp_path / "killed.log").read_text()[-2000:]
    assert (tmp_path / "killed/checkpoints/step=4.ckpt/manifest.json").exists()

    assert train("killed") == 0, (tmp_path / "killed.log").read_text()[-2000:]
    assert "Restoring states from the checkpoint" in (tmp_path / "killed.log").read_text()
    assert _taken(base, config) == expected
