"""Pretraining small enough for a test: base models of each family with random weights, and runs on a prepared set."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from promptnet.training.shapes import any_tokenizer
from tests.training.conftest import ROOT
from tests.training.forked import Runs
from tests.training.ranks import CALLBACKS

BATCH = 3  # pictures of a process and step
ROWS = "[sample, target_row, reference_row]"


def _text(width: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **more,
    )


def write_base(folder: Path, family: str) -> Path:
    """A complete base model with random weights: pictures of 32 px, latents 4 x 16 x 16."""
    torch.manual_seed(0)
    two = family == "sdxl"
    added: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    }
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24 + 32 if two else 24,
        attention_head_dim=2,  # type: ignore[arg-type]
        norm_num_groups=8,
        **(added if two else {}),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        block_out_channels=(8, 8),  # type: ignore[arg-type]
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(_text(24)).save_pretrained(folder / "text_encoder")
    any_tokenizer(16).save_pretrained(folder / "tokenizer")
    if two:
        CLIPTextModelWithProjection(_text(32, projection_dim=12)).save_pretrained(folder / "text_encoder_2")
        any_tokenizer(16).save_pretrained(folder / "tokenizer_2")
    vision = CLIPVisionConfig(
        hidden_size=20, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(vision).save_pretrained(folder / "vision")
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder / "vision")
    DDIMScheduler(
        prediction_type="v_prediction" if family == "sd-v" else "epsilon",
        rescale_betas_zero_snr=family == "sd-v",
    ).save_pretrained(folder / "scheduler")
    return folder


def face_pretraining(runs: Runs, base: Path, faces: Path, *case: str):
    """Starts 6 steps of a shipped config on the tiny set, a checkpoint every 2."""

    def start(run_dir: Path, *options: str, environment: dict[str, str] | None = None) -> int:
        run_dir.mkdir(exist_ok=True)
        callbacks = CALLBACKS.replace("FOLDER", f"{run_dir / 'ledger'}, fields: {ROWS}")
        given = [f"--config={ROOT / 'configs/pretrain/sd15.yaml'}", f"--run_dir={run_dir}", "--threads=1"]
        given += [f"--model.init_args.base_dir={base}", f"--model.init_args.vision_id={base / 'vision'}"]
        given += [f"--model.init_args.export_dir={run_dir / 'encoder'}", "--model.init_args.warmup_steps=1"]
        given += ["--model.init_args.region_kernel_size=2", "--model.init_args.region_proj_channel=8"]
        given += [f"--data.init_args.data_dir={faces}", f"--data.init_args.cache_dir={run_dir.parent / 'cache'}"]
        given += ["--data.init_args.resolution_px=32", f"--data.init_args.batch_size={BATCH}"]
        given += ["--data.init_args.reference=same-identity", "--data.init_args.num_workers=0", *case]
        given += ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        given += ["--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=4"]
        given += [f"--trainer.callbacks={callbacks}"]
        return runs.start(run_dir / "log", "fit", *given, *options, environment=environment)

    return start
