"""The sampler against a straightforward loop, on the same weights in the same run.

    python benchmarks/sampling.py --base checkpoints/tiny

The straightforward loop does what the published code does: three U-Net items in every call, the fusion stage
included, every prompt encoded anew in every call. Both draw the same images from the same generators; the ratio of
their times is the median over pairs of runs, one after the other, and the latents' largest difference is printed
beside it. Below, where the sampler's time goes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from promptnet import PromptNetPipeline, Subject
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.requests import make_requests
from promptnet.inference.subject.lora import apply_loras
from promptnet.models.text import encode_prompts

PROMPTS = [
    "a happy portrait of S*, wearing sunglasses, on a teal background",
    "a sad portrait of S*, on a pink background",
    "a portrait of S* wearing a red hoodie",
    "a surprised portrait of S*, wearing round glasses",
]


class PublishedLoop:
    """Fusion Sampling as the published code runs it, for DDIM: nothing shared, nothing left out.

    Args:
        pipe: where the networks are.
        prompts: each with S*.
        subject: one reference image.
        parameters: the sampler's.
    """

    def __init__(self, pipe: PromptNetPipeline, prompts: Sequence[str], subject: Subject, config: SamplingConfig):
        device = pipe.unet.device
        self.pipe, self.prompts, self.subject, self.config = pipe, list(prompts), subject.to(device), config
        self.class_prompts = [row.reference_prompt for row in make_requests(self.prompts, subject)]

    @torch.no_grad()
    def __call__(self, generators: list[torch.Generator]) -> Tensor:
        """The denoised latents (B, C, h, w)."""
        scheduler: Any = self.pipe.scheduler
        unet = self.pipe.unet
        size = unet.config["sample_size"]
        shape = (len(self.prompts), unet.config["in_channels"], size, size)
        x = randn_tensor(shape, generator=generators, device=unet.device, dtype=unet.dtype)
        scheduler.set_timesteps(self.config.num_inference_steps, device=unet.device)
        for t in scheduler.timesteps:
            x = self._fused(x, t, generators)
            e_u, e_c, e_s = self._three_items(x, t, gamma=1.0)
            output = e_u + self.config.subject_scale * (e_s - e_u) + self.config.class_scale * (e_c - e_u)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return x

    def _fused(self, x: Tensor, t: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The fusion stage, written from x_0 and e: arXiv 2305.13579, algorithm 1, noises merged."""
        scheduler: Any = self.pipe.scheduler
        a = scheduler.alphas_cumprod[int(t)].double()
        before = int(t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        b = (scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod).double()
        r = self.config.fusion_eta**2 * (1 - a / b) / (1 - a)
        for _ in range(self.config.fusion_steps):
            e_u, _, e_s = self._three_items(x, t, gamma=self.config.pseudo_word_scale)
            output = e_u + self.config.fusion_scale * (e_s - e_u)
            noise = randn_tensor(x.shape, generator=generators, device=x.device, dtype=x.dtype)
            if scheduler.config.prediction_type == "v_prediction":
                e = a.sqrt() * output + (1 - a).sqrt() * x
                part_of_x0 = a * x - (a * (1 - a)).sqrt() * output
            else:
                e = output
                part_of_x0 = x - (1 - a).sqrt() * e
            new_noise = (1 - r) * e + (r * (2 - r)).sqrt() * noise
            x = (part_of_x0 + (1 - a).sqrt() * new_noise).to(x.dtype)
        return x

    def _three_items(self, x: Tensor, t: Tensor, gamma: float) -> tuple[Tensor, ...]:
        """Unconditional, class and subject prediction: PromptNet once, three prompts and three items an image."""
        pipe, count = self.pipe, len(self.prompts)
        assert pipe.promptnet is not None
        reference = self.subject.reference_latents.expand(count, -1, -1, -1)
        vision_states = self.subject.vision_states.expand(count, -1, -1)
        with apply_loras(pipe.promptnet, [self.subject.promptnet_loras] * count):
            words = pipe.promptnet(reference, t, vision_states, noisy_latents=x).pseudo_words
        states = [self._encode([""] * count), self._encode(self.class_prompts)]
        states.append(self._encode(self.prompts, [{"S*": word} for word in words], gamma))
        loras = [None] * (2 * count) + [self.subject.unet_loras] * count
        with apply_loras(pipe.unet, loras):
            return pipe.unet(torch.cat([x] * 3), t, torch.cat(states), return_dict=False)[0].chunk(3)

    def _encode(self, prompts: list[str], words: list[dict[str, Tensor]] | None = None, gamma: float = 1.0) -> Tensor:
        positions = self.config.word_positions
        pipe = self.pipe
        return encode_prompts(
            pipe.tokenizer, pipe.text_encoder, prompts, words, pseudo_word_scale=gamma, positions=positions
        ).hidden_states


class Stopwatch:
    """Time and rows of the networks' calls."""

    def __init__(self, pipe: PromptNetPipeline) -> None:
        names = ("unet", "promptnet", "text_encoder")
        self.networks = {name: network for name in names if (network := getattr(pipe, name)) is not None}
        self.seconds = dict.fromkeys(self.networks, 0.0)
        self.calls = dict.fromkeys(self.networks, 0)
        self.rows = dict.fromkeys(self.networks, 0)

    @contextmanager
    def running(self) -> Iterator[None]:
        handles: list[Any] = []
        for name, network in self.networks.items():
            handles.append(network.register_forward_pre_hook(lambda *_, name=name: self._start(name)))
            handles.append(network.register_forward_hook(lambda *a, name=name: self._stop(name, a[-1])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, name: str) -> None:
        self.seconds[name] -= now()

    def _stop(self, name: str, output: Any) -> None:
        self.seconds[name] += now()
        self.calls[name] += 1
        self.rows[name] += len(output[0])


def now() -> float:
    """Seconds, with the accelerator's work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(draw: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = now()
    result = draw()
    return now() - start, result


def compare(pipe: PromptNetPipeline, subject: Subject, prompts: list[str], config: SamplingConfig, pairs: int) -> None:
    """Print times, ratio, difference and where the time goes."""

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]

    def ours(output_type: str = "latent") -> Any:
        return pipe(
            prompts,
            subject=subject,
            generator=generators(),
            output_type=output_type,
            num_inference_steps=config.num_inference_steps,
            subject_scale=config.subject_scale,
            class_scale=config.class_scale,
            fusion_steps=config.fusion_steps,
            fusion_scale=config.fusion_scale,
            fusion_eta=config.fusion_eta,
            fusion_end=1.0,
            pseudo_word_scale=config.pseudo_word_scale,
            word_positions=config.word_positions,
            guidance_rescale=0.0,
            eta=0.0,
        ).images

    published = PublishedLoop(pipe, prompts, subject, config)
    difference = (ours() - published(generators())).abs().max().item()
    runs = [(timed(ours), timed(lambda: published(generators()))) for _ in range(pairs)]
    ours_s, published_s = (statistics.median(run[i][0] for run in runs) for i in (0, 1))
    ratio = statistics.median(mine[0] / theirs[0] for mine, theirs in runs)
    print(f"{len(prompts)} images, {config.num_inference_steps} steps, m = {config.fusion_steps}, {pipe.unet.device}")
    print(f"sampler              {ours_s:8.3f} s")
    print(f"straightforward loop {published_s:8.3f} s")
    print(f"ratio                {ratio:8.3f}   (median of {pairs} paired runs)")
    print(f"latents differ by    {difference:8.1e} at most")
    where_time_goes(pipe, lambda: ours("pt"))


def where_time_goes(pipe: PromptNetPipeline, draw: Callable[[], Tensor]) -> None:
    """One more run of the sampler, with the image decoded, by network."""
    watch = Stopwatch(pipe)
    with watch.running():
        total_s, _ = timed(draw)
    print(f"\n{'':22}{'time':>8}{'share':>8}{'calls':>8}{'rows':>8}")
    for name, seconds in watch.seconds.items():
        print(f"{name:22}{seconds:7.3f}s{seconds / total_s:8.1%}{watch.calls[name]:8}{watch.rows[name]:8}")
    rest_s = total_s - sum(watch.seconds.values())
    print(f"{'decoding and the rest':22}{rest_s:7.3f}s{rest_s / total_s:8.1%}")


def reference_image(path: str | None) -> Any:
    """The image at `path`, or a portrait of somebody from the validation split."""
    if path is not None:
        return path
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar

    return render_avatar(sample_avatar(0, 0, "validation"), 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="checkpoints/tiny", help="base model with an encoder, in diffusers layout")
    parser.add_argument("--image", help="reference picture; default a rendered portrait")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fusion-steps", type=int, default=1)
    parser.add_argument("--class-scale", type=float, default=2.0, help="0 leaves the class prompt out")
    parser.add_argument("--pairs", type=int, default=5, help="paired runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    pipe = PromptNetPipeline.from_pretrained(arguments.base).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    subject = pipe.encode(reference_image(arguments.image))
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(arguments.images)]
    given = {
        "num_inference_steps": arguments.steps,
        "fusion_steps": arguments.fusion_steps,
        "class_scale": arguments.class_scale,
    }
    compare(pipe, subject, prompts, pipe.sampling_defaults.replaced(given), arguments.pairs)


if __name__ == "__main__":
    main()
