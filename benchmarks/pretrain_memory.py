"""The most memory that a pretraining step at full size takes, with random weights: predicted, then measured.

    python benchmarks/pretrain_memory.py --config configs/pretrain/sd2.yaml [--batch-size 1] [--precision bf16-mixed]

Nothing is downloaded: the networks have the base model's true shapes and random weights. One step is forward, backward
and AdamW, with features computed beforehand. On a GPU the figure is what torch's allocator held at most, on a CPU the
process's peak resident memory. A CPU needs some 20 GB and several minutes for SD 2.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from random_base import randomise

from promptnet.training.dry_run.plan import GIB, Setting, build_on_meta, make_plan, meta_batch
from promptnet.training.pretrain.precision import frozen_dtype, place_frozen
from promptnet.training.pretrain.stage import PretrainStage


def materialise(stage: PretrainStage, precision: str, device: torch.device) -> None:
    """The stage with random weights on the device, in the formats of a run."""
    low = frozen_dtype(precision)
    for name, network in stage.frozen.items():
        randomise(network, device, torch.float32 if name == "vae" else low)
    place_frozen(stage.frozen, low, device)
    randomise(stage.promptnet, device, torch.float32)
    stage.alphas = stage.scheduler.alphas_cumprod.to(device)


def real_batch(stage: PretrainStage, setting: Setting, device: torch.device) -> dict[str, Any]:
    """`meta_batch` with random values."""
    batch = meta_batch(stage, setting)
    return {
        key: torch.randn(value.shape, device=device) if isinstance(value, torch.Tensor) and value.is_meta else value
        for key, value in batch.items()
    }


def measure(stage: PretrainStage, setting: Setting, device: torch.device, num_steps: int) -> tuple[float, float]:
    """Peak GiB, and seconds of the last step."""
    materialise(stage, setting.precision, device)
    optimizer = torch.optim.AdamW(stage.promptnet.parameters(), lr=1e-6)
    low, seconds = frozen_dtype(setting.precision), 0.0
    for _ in range(num_steps):
        begin = time.perf_counter()
        with torch.autocast(device.type, low, enabled="mixed" in setting.precision):
            loss = stage.loss(real_batch(stage, setting, device), "train")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / GIB, seconds
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Print the prediction, then the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/sd2.yaml"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--predict-only", action="store_true")
    args = parser.parse_args(argv)
    config = yaml.safe_load(args.config.read_text())
    options = config["model"]["init_args"] | {"gradient_checkpointing": True}
    side_px = config["data"]["init_args"].get("resolution_px", 64)  # the portraits of the embedded model
    setting = Setting(args.batch_size, side_px, ("latents", "vision"), args.precision)
    print("\n".join(make_plan(options, setting).lines()), flush=True)
    if args.predict_only:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak, seconds = measure(build_on_meta(options), setting, device, args.steps)
    what = "held by torch's allocator" if device.type == "cuda" else "peak resident memory of the whole process"
    print(f"measured on {device.type}: {peak:.2f} GiB at most ({what}), {seconds:.2f} s for the last step")


if __name__ == "__main__":
    main()
