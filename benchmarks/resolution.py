"""Time and memory of an adapted U-Net call against a plain one, and of a damped step against the published loop.

    python benchmarks/resolution.py                                 # tiny shape, processor
    python benchmarks/resolution.py --shape sdxl --ratio 2 --device cuda --dtype float16

Prints ratios; lower is better. Targets: a call with whole factors at most 1.15 of a plain one at the same latents, a
damped step at most 0.78 of the published loop's four items, memory within 3 percent.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from promptnet.inference.resolution.adaptation import check_settings
from promptnet.inference.resolution.automatic import automatic_settings
from promptnet.inference.resolution.settings import ResolutionSettings, settings_from_mapping

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "sample_size": 16,
        "block_out_channels": (64, 128, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 192,
        "attention_head_dim": 8,
    },
    "sd21": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
    },
}


def timed(call: Callable[[], Any], repeats: int, device: str) -> tuple[float, int]:
    """Median seconds, and peak bytes on a GPU (0 elsewhere)."""
    call()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() if on_gpu else 0


def variants(num_blocks: int, ratio: float) -> dict[str, ResolutionSettings]:
    """What is measured: `auto`, its factors alone, factors that need resizing, dispersed layers."""
    trained, size = (512, 512), (round(512 * ratio), round(512 * ratio))
    auto = automatic_settings(num_blocks, trained, size)
    if not auto.factors:
        raise ValueError(f"ratio={ratio} must be at least 1.25: nothing is re-dilated below.")
    base = {"factors": dict(auto.factors), "active_steps": 50, "attention": False}
    fractional = {name: tuple(max(1.0, f - 0.5) for f in pair) for name, pair in auto.factors.items()}
    return {
        "auto": auto,
        "re-dilation": settings_from_mapping(base, "re-dilation"),
        "attention": settings_from_mapping({"attention": True}, "attention"),
        "fractional factors": settings_from_mapping({**base, "factors": fractional}, "fractional"),
        "dispersion": settings_from_mapping(
            {**base, "dispersed": list(auto.factors), "dispersed_steps": 50}, "dispersion"
        ),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--ratio", type=float, default=2.0, help="asked side over trained side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)
    unet = UNet2DConditionModel(**SHAPES[given.shape]).eval().to(given.device, dtype)
    num_blocks = len(unet.config["block_out_channels"])
    side = round(SHAPES[given.shape]["sample_size"] * given.ratio)
    multiple = 2 ** (num_blocks - 1)
    side = max(multiple, side // multiple * multiple)

    def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(rows, 4, side, side, device=given.device, dtype=dtype)
        return x, torch.randn(rows, 77, unet.config["cross_attention_dim"], device=given.device, dtype=dtype)

    def call(rows: int) -> None:
        x, states = inputs(rows)
        unet(x, 500, encoder_hidden_states=states)

    plain_s, plain_bytes = timed(lambda: call(1), given.repeats, given.device)
    print(f"{given.shape}, latents {side}x{side}, {given.device}, {given.dtype}: plain call {plain_s * 1000:.1f} ms")
    sizes: Any = ((512, 512), (round(512 * given.ratio),) * 2)
    for name, settings in variants(num_blocks, given.ratio).items():
        mode, _ = check_settings(unet, settings, *sizes).modes()

        def adapted(rows: int, mode: Any = mode) -> None:
            with mode.at(unet, 0.0):
                call(rows)

        seconds, peak = timed(lambda run=adapted: run(1), given.repeats, given.device)
        memory = f", peak memory {peak / plain_bytes:.3f}" if plain_bytes else ""
        print(f"  {name}: {seconds / plain_s:.3f} of a plain call{memory}")
        if name == "re-dilation":
            ours, _ = timed(lambda run=adapted: (run(2), call(1)), given.repeats, given.device)
            published, _ = timed(lambda run=adapted: (run(2), call(2)), given.repeats, given.device)
            print(f"  damped step, three items: {ours / published:.3f} of four items")


if __name__ == "__main__":
    main()
