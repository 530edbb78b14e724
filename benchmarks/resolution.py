"""Time and memory of an adapted U-Net call against a plain one, and of a damped step against the published loop.

    python benchmarks/resolution.py --ratio 2 4                     # the embedded model's shape, processor
    python benchmarks/resolution.py --shape sd21 --ratio 2 --repeats 0  # a quarter of an hour on two cores
    python benchmarks/resolution.py --shape sdxl --ratio 2 --device cuda --dtype float16

Weights are random. Prints ratios, lower is better, beside their targets: a call with whole factors at most 1.15 of a
plain one at the same latents, a damped step at most 0.78 of the published loop's four items, memory at most 1.03 of
plain. Calls take turns, and each ratio is the median over rounds; on a processor, time is that of the process, so that
other work on the machine counts little. Memory is the weights and the most that lies beside them during a call, from a
clean start: a mode is made inside the call, so that what it keeps is counted with it and with no other. The published
loop holds two copies of the U-Net beside it.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from peak_memory import peak_bytes
from timing import seconds_of
from torch import Tensor

from promptnet.inference.resolution.auto import automatic_settings
from promptnet.inference.resolution.mode import check_settings
from promptnet.inference.resolution.rules import resolution_rules
from promptnet.inference.resolution.settings import ResolutionSettings, settings_from_mapping
from promptnet.inference.sampling.guidance import ClassifierFreeGuidance, Condition
from promptnet.inference.sampling.loop import UNetInputs, predict_output
from promptnet.inference.sampling.schedule import Step

CALL_TARGET, STEP_TARGET, MEMORY_TARGET = 1.15, 0.78, 1.03
COPIES_OF_PUBLISHED_LOOP = 2

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


class Once(NamedTuple):
    """A single call: how long it took, and the most memory that lay beside what was there before."""

    seconds: float
    bytes: int


def once(call: Call, device: str) -> Once:
    """Time and memory of one call."""
    took: list[float] = []
    most = peak_bytes(lambda: took.append(seconds_of(call, device)), device)
    return Once(took[0], most)


def ratios(calls: Mapping[str, Call], reference: str, repeats: int, device: str) -> dict[str, float]:
    """Each call's time over the reference's, by turns, the median over rounds; a first round is not counted."""
    for call in calls.values():
        call()
    rounds = [{name: seconds_of(call, device) for name, call in calls.items()} for _ in range(repeats)]
    return {name: statistics.median(times[name] / times[reference] for times in rounds) for name in calls}


def variants(num_blocks: int, sizes: Any, trained_latents: int) -> dict[str, ResolutionSettings]:
    """What is measured: `auto`, its factors alone, factors that need resizing, dispersed layers, damping."""
    auto = automatic_settings(num_blocks, *sizes, trained_latents=trained_latents)
    if not auto.factors:
        raise ValueError(f"{sizes[1]} must be at least 1.25 times {sizes[0]}: nothing is re-dilated below.")
    base: dict[str, Any] = {"factors": dict(auto.factors), "attention": False}
    fractional = {name: tuple(max(1.0, f - 0.5) for f in pair) for name, pair in auto.factors.items()}
    deepest = {f"down_blocks.{num_blocks - 1}", "mid_block", "up_blocks.0"}
    damped = auto.damped_factors or {name: pair for name, pair in auto.factors.items() if name in deepest}
    return {
        "auto": auto,
        "re-dilation": settings_from_mapping(base, "re-dilation"),
        "attention": settings_from_mapping({"attention": True}, "attention"),
        "fractional factors": settings_from_mapping({**base, "factors": fractional}, "fractional"),
        "dispersion": settings_from_mapping({**base, "dispersed": list(auto.factors)}, "dispersion"),
        "damping": settings_from_mapping({**base, "damped_factors": dict(damped)}, "damping"),
    }


def verdict(value: float, target: float | None) -> str:
    """A figure beside its target."""
    if target is None:
        return f"{value:.3f} (no target)"
    return f"{value:.3f} (target {target}: {'ok' if value <= target else 'missed'})"


class Subject:
    """One shape at one size, and what is called of it.

    Args:
        shape: key of `SHAPES`.
        ratio: asked side over trained side.
        device: where.
        dtype: of weights and latents.
    """

    def __init__(self, shape: str, ratio: float, device: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel(**SHAPES[shape])
        self.unet: Any = unet.eval().to(device, dtype)
        num_blocks, trained = len(self.unet.config["block_out_channels"]), SHAPES[shape]["sample_size"]
        multiple = 2 ** (num_blocks - 1)
        self.side = max(1, round(trained * ratio / multiple)) * multiple
        self.sizes: Any = ((8 * trained,) * 2, (8 * self.side,) * 2)
        self.settings = variants(num_blocks, self.sizes, trained)
        self.weights = sum(parameter.nbytes for parameter in self.unet.parameters())
        width = self.unet.config["cross_attention_dim"]
        self.x = torch.randn(1, 4, self.side, self.side, device=device, dtype=dtype)
        self.uncond, self.prompt = torch.randn(2, 1, 77, width, device=device, dtype=dtype)
        self.step = Step(0, 50, torch.tensor(981, device=device), 0.1, 0.2)

    def modes(self, name: str) -> Any:
        """New ones, which keep nothing yet."""
        return check_settings(self.unet, self.settings[name], *self.sizes).modes()

    def plain(self, rows: int = 1) -> None:
        states = torch.cat([self.uncond, self.prompt])[:rows]
        self.unet(self.x.expand(rows, -1, -1, -1), self.step.timestep, encoder_hidden_states=states)

    def adapted(self, mode: Any, rows: int = 1) -> None:
        with mode.applied(self.unet, self.step):
            self.plain(rows)

    def clean(self, name: str) -> None:
        """A call in a mode of its own."""
        self.adapted(self.modes(name)[0])

    def damped_step(self) -> Tensor:
        """The rule's three items."""
        uncond, prompt = (Condition(functools.partial(_inputs, states)) for states in (self.uncond, self.prompt))
        trained_px, asked_px = self.sizes
        rules = resolution_rules(self.unet, self.settings["damping"], trained_size_px=trained_px, size_px=asked_px)
        return predict_output(self.unet, self.x, self.step, [ClassifierFreeGuidance(uncond, prompt, 7.5), *rules])

    def published_step(self) -> None:
        """Both networks, each with both rows."""
        for mode in self.modes("damping"):
            self.adapted(mode, 2)


def _inputs(states: Tensor, x: Tensor, step: Step) -> UNetInputs:
    return UNetInputs(states)


def report(subject: Subject, device: str, repeats: int) -> None:
    """All figures of one shape and size."""
    names = [name for name in subject.settings if name != "damping"]
    clean: dict[str, Call] = {
        "plain": subject.plain,
        **{name: functools.partial(subject.clean, name) for name in names},
    }
    single = {name: once(call, device) for name, call in clean.items()}
    plain = single["plain"]
    print(f"  plain call {plain.seconds * 1000:.1f} ms", flush=True)
    times = {name: each.seconds / plain.seconds for name, each in single.items()}
    if repeats:
        ready = {name: functools.partial(subject.adapted, subject.modes(name)[0]) for name in names}
        times = ratios({"plain": subject.plain, **ready}, "plain", repeats, device)
    for name in names:
        settings = subject.settings[name]
        whole = all(f == round(f) for pair in settings.factors.values() for f in pair)
        time_target = CALL_TARGET if whole and not settings.dispersed else None
        memory = (subject.weights + single[name].bytes) / (subject.weights + plain.bytes)
        memory_target = None if settings.dispersed else MEMORY_TARGET  # larger kernels lie beside the network's
        print(
            f"  {name}: time {verdict(times[name], time_target)}, memory {verdict(memory, memory_target)}", flush=True
        )
    report_damped_step(subject, device, repeats)


def report_damped_step(subject: Subject, device: str, repeats: int) -> None:
    """The rule against the published loop, and its memory against a plain guided call's."""
    steps: dict[str, Call] = {"ours": subject.damped_step, "published": subject.published_step}
    ours, published = (once(call, device) for call in steps.values())
    time_ratio = ratios(steps, "published", repeats, device)["ours"] if repeats else ours.seconds / published.seconds
    guided = subject.weights + once(functools.partial(subject.plain, 2), device).bytes
    held = subject.weights + ours.bytes
    held_by_published = (1 + COPIES_OF_PUBLISHED_LOOP) * subject.weights + published.bytes
    print(f"  damped step: time {verdict(time_ratio, STEP_TARGET)} of the published loop")
    print(f"  its memory: {verdict(held / guided, MEMORY_TARGET)} of a plain guided call's")
    print(f"  its memory: {verdict(held / held_by_published, None)} of the published loop's", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["tiny"])
    parser.add_argument("--ratio", type=float, nargs="+", default=[2.0], help="asked side over trained side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; 0 takes times from the calls that memory is of")
    given = parser.parse_args()
    for shape in given.shape:
        for ratio in given.ratio:
            subject = Subject(shape, ratio, given.device, getattr(torch, given.dtype))
            print(f"{shape}, {ratio:g} times the side, latents {subject.side}, {given.device}, {given.dtype}")
            report(subject, given.device, given.repeats)


if __name__ == "__main__":
    main()
