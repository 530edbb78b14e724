"""What this package's own code costs beside the networks.

    python benchmarks/overhead.py [--base checkpoints/tiny] [--steps 20] [--images 1] [--pairs 5]

Three figures, each from runs that take turns in one process, timed by its own CPU time on a CPU:

1. An image of a subject: the share of U-Net, encoder, text encoder, VAE and of all else, untuned and tuned. A profile
   of one more run says which modules of this package all else is in; profiling itself slows small functions down, so
   that only their order counts.
2. A plain prompt against diffusers' StableDiffusionPipeline: as many evaluations, the same latents.
3. A U-Net call of a batch of users, each with LoRA layers of their own, against PEFT's `adapter_names`: equal outputs.
"""

import argparse
import copy
import cProfile
import pstats
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timing import now_s, paired_ratios, seconds_of, spread
from torch import Tensor, nn

from promptnet.inference.subject.lora import LoRALayer, apply_loras, initial_loras, key_value_layers

NETWORKS = ("unet", "promptnet", "text_encoder", "vae")
PACKAGE = Path(__file__).resolve().parents[1] / "promptnet"
PROMPT = "a portrait of S*"


@contextmanager
def timed_networks(pipe: Any, device: str = "cpu") -> Iterator[dict[str, float]]:
    """Seconds inside each network's outermost call; the VAE's decoder counts, too."""
    spent: dict[str, float] = defaultdict(float)
    modules = {name: pipe.vae.decoder if name == "vae" else getattr(pipe, name) for name in NETWORKS}
    handles: list[Any] = []

    def start(name: str) -> None:
        spent[name] -= now_s(device)

    def stop(name: str) -> None:
        spent[name] += now_s(device)

    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: start(name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: stop(name), always_call=True))
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def shares(pipe: Any, call: Callable[[], Any], device: str = "cpu") -> dict[str, float]:
    """The share of each network in a call's time, and "own code", which is all else."""
    with timed_networks(pipe, device) as spent:
        total_s = seconds_of(call, device)
    found = {name: spent[name] / total_s for name in NETWORKS}
    return {**found, "own code": 1 - sum(found.values())}


def by_module(call: Callable[[], Any]) -> dict[str, float]:
    """The share of each of this package's modules in a profiled call, time in what it calls elsewhere left out."""
    profile = cProfile.Profile()
    profile.runcall(call)
    stats: Any = pstats.Stats(profile)
    spent: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own_s, _, _) in stats.stats.items():
        if Path(file).is_relative_to(PACKAGE):
            spent[str(Path(file).relative_to(PACKAGE))] += own_s
    return {name: own_s / stats.total_tt for name, own_s in sorted(spent.items(), key=lambda item: -item[1])}


def stock_call(pipe: Any, prompt: str, steps: int, latents: Tensor) -> Callable[[], Any]:
    """The same drawing by diffusers' own pipeline."""
    from diffusers import StableDiffusionPipeline

    parts: dict[str, Any] = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    stock: Any = StableDiffusionPipeline(
        **parts,
        scheduler=copy.deepcopy(pipe.scheduler),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    side = pipe.trained_size_px[0]
    size = {"height": side, "width": side}
    return lambda: (
        stock(
            [prompt] * len(latents),
            num_inference_steps=steps,
            guidance_scale=3.0,
            latents=latents,
            output_type="pt",
            **size,
        ).images
    )


def our_call(pipe: Any, prompt: str, steps: int, latents: Tensor) -> Callable[[], Any]:
    """The drawing by ours."""
    given: dict[str, Any] = {"guidance_scale": 3.0, "guidance_rescale": 0.0, "latents": latents, "output_type": "pt"}
    return lambda: pipe([prompt] * len(latents), num_inference_steps=steps, **given).images


def users_calls(unet: Any, users: int, rank: int = 4) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One U-Net call of so many users, by ours and by PEFT."""
    from peft import LoraConfig, PeftModel, get_peft_model

    layers = key_value_layers(unet)
    generator = torch.Generator().manual_seed(0)
    people = [_random_loras(layers, rank, generator) for _ in range(users)]
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    x, states = (torch.randn(users, *shape, generator=generator) for shape in ((4, side, side), (77, width)))
    given = {"timestep": torch.tensor(500), "encoder_hidden_states": states}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), init_lora_weights=False)
    wrapped: PeftModel = get_peft_model(copy.deepcopy(unet), config, adapter_name="user0")  # type: ignore[assignment]
    for number in range(1, users):
        wrapped.add_adapter(f"user{number}", config)
    model: Any = wrapped.base_model.model
    for number, loras in enumerate(people):
        for name, lora in loras.items():
            layer = model.get_submodule(name)
            layer.lora_A[f"user{number}"].weight.data.copy_(lora.A)
            layer.lora_B[f"user{number}"].weight.data.copy_(lora.B)
    wrapped.eval()
    names = [f"user{number}" for number in range(users)]

    @torch.no_grad()
    def ours() -> Tensor:
        with apply_loras(unet, people):
            return unet(x, **given).sample

    @torch.no_grad()
    def peft() -> Tensor:
        return wrapped(x, **given, adapter_names=names).sample

    return ours, peft


def _random_loras(layers: dict[str, nn.Module], rank: int, generator: torch.Generator) -> dict[str, LoRALayer]:
    made = initial_loras(layers, rank, generator)
    return {name: LoRALayer(m.A, torch.randn(m.B.shape, generator=generator) * 0.1) for name, m in made.items()}


def report_shares(pipe: Any, args: argparse.Namespace) -> None:
    portrait = _portrait()
    tuned = pipe.customize(portrait, steps=1, progress_bar=False, registration="never", allow_foreign=True)
    for kind, subject in (
        ("untuned", pipe.encode(portrait, registration="never", allow_foreign=True)),
        ("tuned", tuned),
    ):

        def draw(subject: Any = subject) -> Any:
            generator = torch.Generator().manual_seed(0)
            given: dict[str, Any] = {"num_inference_steps": args.steps, "generator": generator, "output_type": "pt"}
            return pipe([PROMPT] * args.images, subject=subject, **given)

        draw()
        runs = [shares(pipe, draw) for _ in range(args.pairs)]
        found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(f"{kind}: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items()), flush=True)
        for name, share in list(by_module(draw).items())[:8]:
            print(f"    {name:<44}{share:6.2%} of a profiled run")


def _portrait() -> Any:
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar

    return render_avatar(sample_avatar(0, 0, "validation"), 64)


def report_ratios(pipe: Any, args: argparse.Namespace) -> None:
    side, prompt = pipe.unet.config["sample_size"], "a portrait of a person"
    latents = torch.randn(args.images, 4, side, side, generator=torch.Generator().manual_seed(0))
    ours, stock = (make(pipe, prompt, args.steps, latents) for make in (our_call, stock_call))
    difference = float((ours() - stock()).abs().max())
    found = timed_in_turn(ours, stock, args.pairs)
    print(
        f"plain prompt, ours over diffusers' pipeline: {spread(found)}; images differ by {difference:.1e}", flush=True
    )
    for users in args.users:
        mine, peft = users_calls(pipe.unet, users)
        difference = float((mine() - peft()).abs().max())
        found = timed_in_turn(mine, peft, args.pairs)
        print(f"{users} users, ours over PEFT: {spread(found)}; outputs differ by {difference:.1e}", flush=True)


def timed_in_turn(one: Callable[[], Any], other: Callable[[], Any], pairs: int) -> list[float]:
    """Return one's time over the other's, pair by pair."""
    return paired_ratios(lambda: seconds_of(one), lambda: seconds_of(other), pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="checkpoints/tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--users", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args(argv)
    from promptnet import PromptNetPipeline

    torch.set_num_threads(1)
    pipe: Any = PromptNetPipeline.from_pretrained(args.base)
    pipe.set_progress_bar_config(disable=True)
    print(f"1 thread, torch {torch.__version__}, {args.base}, {args.images} images, {args.steps} steps")
    report_shares(pipe, args)
    report_ratios(pipe, args)


if __name__ == "__main__":
    main()
