"""Learning mixing weights: memory against the number of steps, and time against the whole graph.

    python benchmarks/mixing.py                                   # the embedded model's shape, random weights
    python benchmarks/mixing.py --shape sd15 --steps 1 2 --pairs 0  # Stable Diffusion 1.5's, 512 px: some 20 GB

Each number is of one gradient through all denoising steps and the decoder, for one image; the loss is the mean square
of its pixels. What CLIP and a perceptual network add, once an iteration whatever the number of steps, is left out, in
both graphs alike. Memory is the peak
above what the networks themselves take: on a CPU the process's, whose allocator is told to give freed memory back to
the system at once, on a GPU torch's allocator's. That makes everything slower, so the ratio of the times is taken in
a process whose allocator is as usual. Denormal numbers, which random weights make plenty of on the way
back and a CPU takes a hundred times longer for, are flushed to zero, as in training.

Flat means: the peak at the largest number of steps, less the latents themselves, is within a tenth of that at the
smallest. Time is to be at most 1.5 times that of the whole graph. The forecast adds to the peak at the largest
number of steps what a further step keeps, its latents, and the networks.
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MIB = 1024**2
FLAT, SLOWER = 1.1, 1.5  # the targets: peaks' ratio, times' ratio
# Freed memory goes back to the system at once, or a peak would be hidden in what the allocator holds.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


class Problem:
    """An image of mixing weights on random networks, and a number made of it.

    Args:
        shape: "tiny" or "sd15".
        size_px: of the image; None is as the model draws.
        device: where.
    """

    def __init__(self, shape: str, size_px: int | None, device: str) -> None:
        from promptnet.inference.editing.inversion import make_scheduler
        from promptnet.inference.editing.rule import Directions, Mixing
        from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition
        from promptnet.inference.sampling.loop import UNetInputs

        torch.manual_seed(0)
        self.unet, self.vae, num_tokens, width = networks(shape)
        for part in (self.unet, self.vae):
            part.eval().requires_grad_(False).to(device)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.unet.config.sample_size if size_px is None else size_px // factor
        self.noise = torch.randn(1, 4, side, side, device=device)
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
        self.scheduler = make_scheduler("DDIMScheduler", betas)
        states = torch.randn(3, 1, num_tokens, width, device=device)
        given = [UNetInputs(one) for one in states[:2]]
        first, second = (Condition(lambda x, step, one=one: one) for one in given)
        self.guidance = ClassifierFreeGuidance(first, second, 7.5)
        self.mixing: Callable[[Tensor], Any] = lambda weights: Mixing(weights[None], Directions(states[2] - states[1]))
        self.device = device

    @property
    def latents_bytes(self) -> int:
        """Of one step."""
        return self.noise.numel() * self.noise.element_size()

    @property
    def networks_bytes(self) -> int:
        """Of the weights."""
        return sum(p.numel() * p.element_size() for part in (self.unet, self.vae) for p in part.parameters())

    def gradient(self, num_steps: int, *, checkpoint: bool) -> Tensor:
        """Of a number made of the image, by the weights."""
        from promptnet.inference.editing.card import start_weights
        from promptnet.training.editing.stage import sample_pixels

        weights = start_weights(num_steps).to(self.device).requires_grad_()
        self.scheduler.set_timesteps(num_steps, device=self.device)
        rules = [self.guidance, self.mixing(weights)]
        pixels = sample_pixels(self.unet, self.vae, self.scheduler, self.noise, rules, checkpoint=checkpoint)
        (found,) = torch.autograd.grad(pixels.square().mean(), weights)
        return found


def networks(shape: str) -> tuple[Any, Any, int, int]:
    """U-Net and VAE with random weights, and the prompts' tokens and width."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from promptnet.models.tiny import MAX_TOKENS, TEXT_WIDTH, build_unet, build_vae

    if shape == "tiny":
        return build_unet(), build_vae(), MAX_TOKENS, TEXT_WIDTH
    four: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae = AutoencoderKL(**four, layers_per_block=2, latent_channels=4)
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768), vae, 77, 768


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(problem: Problem, steps: int, *, checkpoint: bool) -> dict[str, Any]:
    """Peak and time of one gradient."""
    base = reset_peak(problem.device)
    gradient, seconds = timed(lambda: problem.gradient(steps, checkpoint=checkpoint), problem.device)
    return {"peak_bytes": peak(problem.device) - base, "seconds": seconds, "gradient": gradient}


def compare_times(problem: Problem, steps: int, pairs: int) -> list[float]:
    """Time with recomputation over time with the whole graph, of pairs one after the other."""
    ratios = []
    for _ in range(pairs):
        ours, theirs = (
            timed(lambda kept=kept: problem.gradient(steps, checkpoint=not kept), problem.device)[1]
            for kept in (False, True)
        )
        ratios.append(ours / theirs)
    return ratios


def timed(work: Callable[[], Tensor], device: str) -> tuple[Tensor, float]:
    """What it gives, and seconds."""
    start_s = time.perf_counter()
    found = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return found, time.perf_counter() - start_s


def reset_peak(device: str) -> int:
    """Bytes in use now, from where the peak counts anew."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc's; or what an earlier run has freed would take this one's in
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Most bytes in use since then."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# --- the table ----------------------------------------------------------------------------------------------------


def table(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    problem, counts = Problem(arguments.shape, arguments.size, arguments.device), sorted(arguments.steps)
    if arguments.shape == "tiny":
        problem.gradient(1, checkpoint=True)  # what libraries set up once is not the method's
    print(f"{arguments.shape}, one image, float32, {arguments.device}, {torch.get_num_threads()} threads")
    print("loss: mean square of the pixels; no CLIP and no perceptual network, which would add the same at any steps")
    print(f"{'steps':>8}{'peak':>12}{'of it latents':>17}{'time':>10}", flush=True)
    found = {}
    for steps in counts:
        found[steps] = one = measure(problem, steps, checkpoint=True)
        latents = steps * problem.latents_bytes
        print(f"{steps:8}{one['peak_bytes'] / MIB:8.1f} MiB{latents / MIB:13.2f} MiB{one['seconds']:8.2f} s")
    few, many = counts[0], counts[-1]
    rest = {n: found[n]["peak_bytes"] - n * problem.latents_bytes for n in (few, many)}
    ratio = rest[many] / rest[few]
    print(f"peak of {many} steps less their latents against {few}: {ratio:.3f}, {judged(ratio, FLAT)}")
    print(forecast(problem, found[many]["peak_bytes"], many, arguments.forecast), flush=True)
    if arguments.pairs:
        against_the_whole(problem, arguments.whole_steps)


def against_the_whole(problem: Problem, steps: int) -> None:
    """The whole graph's memory."""
    # The larger one last: what it leaves in the process would be taken for the other's.
    ours, whole = (measure(problem, steps, checkpoint=checkpoint) for checkpoint in (True, False))
    relative = (torch.dist(whole["gradient"], ours["gradient"]) / whole["gradient"].norm()).item()
    print(f"{steps} steps: whole graph {whole['peak_bytes'] / MIB:.1f} MiB, ", end="")
    print(f"recomputed {ours['peak_bytes'] / MIB:.1f} MiB, gradients differ by {relative:.1e}", flush=True)


def times(arguments: argparse.Namespace) -> None:
    """Print the ratio of the times."""
    problem, pairs = Problem(arguments.shape, arguments.size, arguments.device), arguments.pairs
    problem.gradient(1, checkpoint=True)
    ratio = statistics.median(compare_times(problem, arguments.whole_steps, pairs))
    print(f"time recomputed / whole graph: {ratio:.2f}, {judged(ratio, SLOWER)} (median of {pairs} paired runs)")


def judged(ratio: float, target: float) -> str:
    """Whether a ratio is what was aimed at."""
    return f"{'ok' if ratio <= target else 'missed'} (target at most {target:g})"


def forecast(problem: Problem, peak_bytes: int, measured: int, steps: int) -> str:
    """What more steps would take: a further step keeps its latents and nothing else."""
    more = max(0, steps - measured)
    gib = [size / MIB / 1024 for size in (problem.networks_bytes, peak_bytes, more * problem.latents_bytes)]
    return (
        f"{steps} steps take {sum(gib):.2f} GiB: the networks {gib[0]:.2f}, the peak at {measured} steps {gib[1]:.2f}, "
        f"{more} more latents of {problem.latents_bytes / 1024:.0f} KiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["tiny", "sd15"], default="tiny")
    parser.add_argument("--size", type=int, help="of the image in pixels (default: as the model draws)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--whole-steps", type=int, default=10, help="steps of the comparison with the whole graph")
    parser.add_argument("--pairs", type=int, default=5, help="paired runs of that comparison; 0 leaves it out")
    parser.add_argument("--forecast", type=int, default=50, help="steps whose memory is forecast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if ALLOCATOR.items() <= os.environ.items():
        return table(arguments)
    # The allocator reads them when a process starts.
    subprocess.run([sys.executable, *sys.argv], env={**os.environ, **ALLOCATOR}, check=True)
    if arguments.pairs:
        times(arguments)


if __name__ == "__main__":
    main()
