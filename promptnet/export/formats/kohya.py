"""The one LoRA file that diffusers, ComfyUI, Forge, InvokeAI, sd-scripts and LyCORIS read.

Names are diffusers' own with underscores, as ComfyUI does not know diffusers' PEFT names. Every layer has one rank and
one alpha, as diffusers ignores alphas that differ. Only the U-Net's layers are there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject
from promptnet.export.tensor_file import read_tensors, write_tensors
from promptnet.inference.subject.lora import LoRALayer

NAME = "kohya"
PREFIX = "lora_unet_"
# By the width of the prompt's states: what Forge and A1111 test for.
_VERSIONS = {768: ("sd_v1", "stable-diffusion-v1/lora"), 1024: ("sd_v2", "stable-diffusion-v2-512/lora")}
_SDXL = ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora")


def key_of(layer: str) -> str:
    """The key of a layer, without what stands behind the dot."""
    return PREFIX + layer.replace(".", "_")


def tensors_of(static: StaticSubject) -> dict[str, Tensor]:
    """Every tensor by its key; alpha is the rank, so that nothing is scaled."""
    found: dict[str, Tensor] = {}
    for name, lora in static.padded().loras.items():
        key = key_of(name)
        found[f"{key}.lora_down.weight"] = lora.A
        found[f"{key}.lora_up.weight"] = lora.B
        found[f"{key}.alpha"] = torch.tensor(float(lora.rank))
    return found


def host_metadata(static: StaticSubject) -> dict[str, str]:
    """What A1111, Forge and sd-scripts read of a LoRA file."""
    version, architecture = _SDXL if len(static.widths) == 2 else _VERSIONS.get(static.widths[0], ("", ""))
    found = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(static.rank),
        "ss_network_alpha": str(float(static.rank)),
        "ss_base_model_version": version,
        "modelspec.architecture": architecture,
    }
    if version == "sd_v2":
        found["ss_v2"] = "True"
    return {name: text for name, text in found.items() if text}


def write(static: StaticSubject, path: Path, passport: Passport) -> None:
    """Write the file.

    Raises:
        ExportError: the subject has no LoRA.
    """
    static.require_lora(NAME)
    tensors = tensors_of(static)
    write_tensors(path, tensors, {**host_metadata(static), **passport.metadata(NAME, tensors)})


def parse(path: Path, layers: Sequence[str]) -> Content:
    """The layers of a file; alphas that differ from the rank, or from each other, are problems.

    Raises:
        ExportError: the file is broken.
    """
    tensors, _ = read_tensors(path)
    by_key = {key_of(layer): layer for layer in layers}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, _, part = key.partition(".")
        parts.setdefault(place, {})[part] = tensor
    loras, problems = {}, []
    for place, found in parts.items():
        name = by_key.get(place)
        if name is None:
            continue
        if {"lora_down.weight", "lora_up.weight", "alpha"} - set(found):
            problems.append(f"{name}: it needs lora_down.weight, lora_up.weight and alpha, and has {', '.join(found)}")
            continue
        down, up, alpha = found["lora_down.weight"], found["lora_up.weight"], float(found["alpha"])
        if alpha != len(down):
            problems.append(f"{name}: its alpha is {alpha:g}, and its rank {len(down)}")
        loras[name] = LoRALayer(down.float(), up.float() * alpha / len(down))
    return Content(loras, strangers=[key for key in parts if key not in by_key], problems=problems)


def read_with_diffusers(pipe: Any, path: Path) -> None:
    """Load it as diffusers does."""
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)


def read_with_lycoris(pipe: Any, path: Path) -> None:
    """Merge it as LyCORIS does, into the U-Net's own weights."""
    from lycoris.utils import merge
    from safetensors.torch import load_file

    merge([], pipe.unet, load_file(path))


FORMAT = FileFormat(
    NAME, "-kohya.safetensors", write, parse, {"diffusers": read_with_diffusers, "lycoris": read_with_lycoris}
)
