"""The pipelines of the matrix: ours and diffusers' own, of Stable Diffusion and SDXL, with small random networks."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from promptnet import PromptNetPipeline

KINDS = ("ours", "text2img", "img2img", "inpaint", "controlnet")
FAMILIES = ("sd", "sdxl")
HEIGHT, WIDTH = 48, 32  # trained at 32: latents 16x16
STEPS, SCALE = 2, 3.0
SCHEDULER: Any = {"clip_sample": False, "steps_offset": 1}  # the offset that diffusers sets otherwise
IP_WIDTH = 6  # of the image embeddings that an IP-Adapter reads
_SUFFIX = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint", "controlnet": "ControlNet"}
_IMAGE = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
_MASK = Image.new("L", (WIDTH, HEIGHT), 255)


def class_of(kind: str, family: str, *, controlled: bool = False) -> Any:
    """Return the class of a pipeline."""
    suffix = _SUFFIX[kind]
    if controlled and kind != "controlnet":
        suffix = f"ControlNet{suffix}"
    return getattr(diffusers, f"StableDiffusion{'XL' if family == 'sdxl' else ''}{suffix}Pipeline")


def build(ours: Any, kind: str, family: str, *, controlled: bool = False) -> Any:
    """Build a pipeline of one's own networks with the weights of `ours`."""
    parts = {name: copy.deepcopy(part) for name, part in ours.components.items()}
    if kind == "ours":
        return quiet(PromptNetPipeline(**parts))
    if controlled or kind == "controlnet":
        parts["controlnet"] = controlnet_of(parts["unet"])
    return assemble(class_of(kind, family, controlled=controlled), parts)


def assemble(kind: Any, parts: Mapping[str, Any]) -> Any:
    """Build a stock pipeline of those parts that it takes."""
    taken = kind.__init__.__code__.co_varnames
    given = {name: part for name, part in parts.items() if name in taken and name != "image_encoder"}
    given["feature_extractor"] = None
    if "safety_checker" in taken:
        given |= {"safety_checker": None, "requires_safety_checker": False}
    found = kind(**{name: part for name, part in given.items() if name in taken})
    found.scheduler = DDIMScheduler(**SCHEDULER)
    return quiet(found)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet_of(unet: Any) -> Any:
    """Build a ControlNet that one can see."""
    torch.manual_seed(6)
    network: Any = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4)).eval()
    network.controlnet_cond_embedding.conv_out.weight.data.normal_()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():  # they start at zero
            nn.init.normal_(module.weight, std=0.3)
    return network.requires_grad_(False)


def call(pipe: Any, output_type: str = "latent", seed: int = 0, **options: Any) -> Tensor:
    """Call a pipeline with what it needs besides prompts, in as many steps and with as much guidance as all others."""
    name = type(pipe).__name__
    generator = torch.Generator().manual_seed(seed)
    given: dict[str, Any] = {"output_type": output_type, "generator": generator, "num_inference_steps": STEPS}
    given |= _images(name)
    if "Img2Img" not in name:
        given |= {"height": HEIGHT, "width": WIDTH}
    if getattr(pipe.unet.config, "encoder_hid_dim_type", None) == "ip_image_proj" and "PromptNet" not in name:
        embeds = torch.randn(1, 1, IP_WIDTH, generator=torch.Generator().manual_seed(3)).to(pipe.unet.dtype)
        given["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(embeds), embeds])]
    if not {"guidance_scale", "subject"} & set(options):
        given["guidance_scale"] = SCALE
    return pipe(**{**given, **options}).images


def _images(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "Inpaint" in name:
        found = {"image": _IMAGE, "mask_image": _MASK, "strength": 1.0}
    elif "Img2Img" in name:
        found = {"image": _IMAGE, "strength": 0.7}
    if "ControlNet" in name:
        found["control_image" if "image" in found else "image"] = _IMAGE
    return found


def networks_of(pipe: Any) -> list[Any]:
    """Return the networks that an adaptation to a size acts on."""
    return [network for network in (pipe.unet, getattr(pipe, "controlnet", None)) if network is not None]


def bases(folder: Path) -> dict[str, Any]:
    """Load our pipeline of each family."""
    from tests.base_models import write_base
    from tests.export.conftest import load

    found = {family: load(write_base(folder / family, family)) for family in FAMILIES}
    for pipe in found.values():
        pipe.scheduler = DDIMScheduler(**SCHEDULER)
    return found
