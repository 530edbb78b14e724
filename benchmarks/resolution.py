"""Time and memory of an adapted U-Net call against a plain one, and of a damped step against the published loop.

    python benchmarks/resolution.py                                 # the embedded model's shape, processor
    python benchmarks/resolution.py --shape sdxl --ratio 2 --device cuda --dtype float16

Prints ratios; lower is better. Targets: a call with whole factors at most 1.15 of a plain one at the same latents, a
damped step at most 0.78 of the published loop's four items, memory within 3 percent. Calls take turns, and each ratio
is the median over rounds; on a processor, time is that of the process, so that other work on the machine counts
little. Peak memory is measured on a GPU.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from promptnet.inference.resolution.adaptation import check_settings
from promptnet.inference.resolution.automatic import automatic_settings
from promptnet.inference.resolution.settings import ResolutionSettings, settings_from_mapping

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "sample_size": 16,
        "block_out_channels": (64, 128, 192),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "cross_attention_dim": 192,
        "attention_head_dim": (2, 4, 6),
        "use_linear_projection": True,
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


Call = Callable[[], Any]


def seconds_of(call: Call, device: str) -> float:
    """One call: wall time on a GPU, the process's own on a processor."""
    if not device.startswith("cuda"):
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(calls: Mapping[str, Call], reference: str, repeats: int, device: str) -> tuple[dict[str, float], float]:
    """Each call's time over the reference's, by turns, and the reference's median seconds."""
    for call in calls.values():
        call()
    rounds = [{name: seconds_of(call, device) for name, call in calls.items()} for _ in range(repeats)]
    found = {name: statistics.median(times[name] / times[reference] for times in rounds) for name in calls}
    return found, statistics.median(times[reference] for times in rounds)


def peak_bytes(call: Call, device: str) -> int:
    """Most memory during a call on a GPU; 0 elsewhere."""
    if not device.startswith("cuda"):
        return 0
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated()


def variants(num_blocks: int, ratio: float, trained_latents: int) -> dict[str, ResolutionSettings]:
    """What is measured: `auto`, its factors alone, factors that need resizing, dispersed layers."""
    trained, size = (512, 512), (round(512 * ratio), round(512 * ratio))
    auto = automatic_settings(num_blocks, trained, size, trained_latents=trained_latents)
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

    def plain(rows: int) -> None:
        x, states = inputs(rows)
        unet(x, 500, encoder_hidden_states=states)

    def adapted(mode: Any, rows: int) -> None:
        with mode.at(unet, 0.0):
            plain(rows)

    sizes: Any = ((512, 512), (round(512 * given.ratio),) * 2)
    settings = variants(num_blocks, given.ratio, SHAPES[given.shape]["sample_size"])
    modes = {name: check_settings(unet, each, *sizes).modes()[0] for name, each in settings.items()}
    calls: dict[str, Call] = {"plain": lambda: plain(1)}
    calls |= {name: functools.partial(adapted, mode, 1) for name, mode in modes.items()}
    found, seconds = ratios(calls, "plain", given.repeats, given.device)
    print(f"{given.shape}, latents {side}x{side}, {given.device}, {given.dtype}: plain call {seconds * 1000:.1f} ms")
    plain_bytes = peak_bytes(calls["plain"], given.device)
    for name in modes:
        memory = f", peak memory {peak_bytes(calls[name], given.device) / plain_bytes:.3f}" if plain_bytes else ""
        print(f"  {name}: {found[name]:.3f} of a plain call{memory}")
    mode = modes["re-dilation"]
    steps = {"ours": lambda: (adapted(mode, 2), plain(1)), "published": lambda: (adapted(mode, 2), plain(2))}
    found, _ = ratios(steps, "published", given.repeats, given.device)
    print(f"  damped step, three items: {found['ours']:.3f} of four items")


if __name__ == "__main__":
    main()
