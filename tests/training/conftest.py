"""A complete base model with random weights on disk, and a way to run train.py on it for a few steps."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel, CLIPVisionModel

from promptnet.models.tiny import (
    build_clip,
    build_image_processor,
    build_scheduler,
    build_unet,
    build_vae,
    train_tokenizer,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diffusers folder of an untrained embedded model with a narrower U-Net."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a portrait of a person, wearing glasses"])
    config: Any = build_clip(tokenizer).config
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(config.text_config).save_pretrained(folder / "text_encoder")
    CLIPVisionModel(config.vision_config).save_pretrained(folder / "image_encoder")
    build_image_processor().save_pretrained(folder / "feature_extractor")
    build_vae().save_pretrained(folder / "vae")
    build_unet((32, 32, 64)).save_pretrained(folder / "unet")
    build_scheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def picture_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the few pictures of the tests are rendered once."""
    return tmp_path_factory.mktemp("pictures")


def train(config: str, run_dir: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`python train.py fit` on 48 pictures with batches of 4, in a process of its own."""
    command = [
        *(sys.executable, "train.py", "fit", "--config", f"configs/{config}.yaml", "--run_dir", str(run_dir)),
        *("--threads", "1", "--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.accelerator", "cpu"),
        *("--data.init_args.num_pictures", "48", "--data.init_args.num_validation", "8"),
        *("--data.init_args.batch_size", "4", "--data.init_args.cache_dir", str(cache)),
        *("--trainer.enable_progress_bar", "false", *options),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
