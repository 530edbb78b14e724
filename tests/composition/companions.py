"""What people put beside a subject, an edit or another size: each with what its result is to be compared to."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from promptnet import PromptNetPipeline
from tests.composition.pipelines import assemble, build, class_of, networks_of, quiet
from tests.inference.resolution.test_combining import ip_adapter

Pipe = Any


@dataclass(frozen=True)
class Companion:
    """One thing beside.

    Args:
        put: it on a pipeline; returns the pipeline to call.
        merge: what makes a pipeline with it one whose weights hold it; the right value is computed there.
        acts: whether the result is another one with it.
        on_both: whether what it is compared to has it too.
        output_type: of results.
        tolerance: of results, as a share of their size.
    """

    put: Callable[[Pipe], Pipe] = lambda pipe: pipe
    merge: Callable[[Pipe], None] | None = None
    acts: bool = False
    on_both: bool = False
    output_type: str = "latent"
    tolerance: float = 1e-4


def add_adapter(config: Callable[[], Any]) -> Callable[[Pipe], Pipe]:
    def put(pipe: Pipe) -> Pipe:
        torch.manual_seed(2)
        pipe.unet.add_adapter(config())
        for name, weight in pipe.unet.named_parameters():
            if ".hada_" in name:  # nearly nothing at first
                torch.nn.init.normal_(weight, std=0.5)
        pipe.unet.requires_grad_(False).eval()
        return pipe

    return put


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "conv1"], init_lora_weights=False)


def loha() -> Any:
    from peft import LoHaConfig

    return LoHaConfig(r=2, alpha=2, target_modules=["to_k", "to_v", "conv1"], init_weights=False)


def merge_adapters(pipe: Pipe) -> None:
    for module in pipe.unet.modules():
        if hasattr(module, "base_layer"):
            module.merge()


def load_ip_adapter(pipe: Pipe) -> Pipe:
    """With an adapter for layers of any width."""
    weights = ip_adapter(pipe.unet)
    generator = torch.Generator().manual_seed(1)
    layers = [layer for name, layer in pipe.unet.named_modules() if name.endswith("attn2")]
    weights["ip_adapter"] = {
        f"{2 * place + 1}.to_{part}_ip.weight": torch.randn(
            layer.to_k.out_features, layer.to_k.in_features, generator=generator
        )
        for place, layer in enumerate(layers)
        for part in "kv"
    }
    pipe.unet._load_ip_adapter_weights([weights])
    pipe.unet.requires_grad_(False).eval()
    return pipe


def enable_freeu(pipe: Pipe) -> Pipe:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    return pipe


def enable_tiling(pipe: Pipe) -> Pipe:
    pipe.vae.enable_tiling()
    return pipe


def offload(pipe: Pipe) -> Pipe:
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def offload_layers(pipe: Pipe) -> Pipe:
    """As `enable_sequential_cpu_offload`, whose device "cpu:0" accelerate takes for another one than "cpu"."""
    from accelerate import cpu_offload

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    return pipe


def compile_networks(backend: str) -> Callable[[Pipe], Pipe]:
    """In place, as the documentation of diffusers does."""

    def put(pipe: Pipe) -> Pipe:
        torch.compiler.reset()
        for network in networks_of(pipe):
            network.compile(backend=backend)
        return pipe

    return put


def wrap_compiled(pipe: Pipe) -> Pipe:
    torch.compiler.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    return pipe


def cast(dtype: torch.dtype) -> Callable[[Pipe], Pipe]:
    return lambda pipe: pipe.to(dtype)


def sibling(pipe: Pipe) -> Pipe:
    """The pipeline made by `from_pipe` of another one that shares its networks."""
    kind = type(pipe)
    if kind is PromptNetPipeline:
        family = "sd" if pipe.text_encoder_2 is None else "sdxl"
        stock = assemble(class_of("text2img", family), pipe.components)
        own = {name: pipe.components[name] for name in ("promptnet", "image_encoder", "feature_extractor")}
        return quiet(PromptNetPipeline.from_pipe(stock, **own))
    family = "sdxl" if "XL" in kind.__name__ else "sd"
    first = assemble(class_of("text2img", family), pipe.components)
    more = {"controlnet": pipe.controlnet} if hasattr(pipe, "controlnet") else {}
    found = kind.from_pipe(first, **more)
    found.scheduler = copy.deepcopy(pipe.scheduler)
    return quiet(found)


COMPANIONS: dict[str, Companion] = {
    "none": Companion(),
    "LoRA": Companion(add_adapter(lora), merge_adapters, acts=True, on_both=True),
    "LoHa": Companion(add_adapter(loha), merge_adapters, acts=True, on_both=True),
    "IP-Adapter": Companion(load_ip_adapter, acts=True, on_both=True),
    "FreeU": Companion(enable_freeu, acts=True, on_both=True),
    "tiling": Companion(enable_tiling, on_both=True, output_type="pt"),
    "model offload": Companion(offload),
    "sequential offload": Companion(offload_layers),
    "compile eager": Companion(compile_networks("eager")),
    "compile aot_eager": Companion(compile_networks("aot_eager"), tolerance=1e-3),
    "compile wrapper": Companion(wrap_compiled),
    "float16": Companion(cast(torch.float16), tolerance=0.1),
    "bfloat16": Companion(cast(torch.bfloat16), tolerance=0.6),
    "from_pipe": Companion(sibling),
}


def with_companion(ours: Any, kind: str, family: str, name: str, *, controlled: bool = False) -> tuple[Pipe, Pipe]:
    """Build a pipeline with a companion, and another that is to give the same result without it or with it merged."""
    companion = COMPANIONS[name]
    found = companion.put(build(ours, kind, family, controlled=controlled))
    right = build(ours, kind, family, controlled=controlled)
    if companion.on_both:
        right = companion.put(right)
    if companion.merge is not None:
        companion.merge(right)
    return found, right


def dilated(pipe: Pipe, factor: int, blocks: tuple[str, ...], scales: dict[str, float]) -> Pipe:
    """Adapt a pipeline by hand: whole factors are the dilation of 3x3 convolutions, and a scale of logits one of keys.

    Args:
        pipe: whose networks change.
        factor: of the dilation.
        blocks: whose convolutions are dilated.
        scales: of the self-attention in the blocks with these beginnings.
    """
    for network in networks_of(pipe):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and name.startswith(blocks):
                module.dilation = module.padding = (factor, factor)
            scale = next((scale for begin, scale in scales.items() if name.startswith(begin)), None)
            if scale is not None and name.endswith("attn1.to_q"):
                layer: Any = getattr(module, "base_layer", module)
                layer.weight.data *= scale
    return pipe
