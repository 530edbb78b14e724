"""A LoRA in diffusers' own layout: a folder with `pytorch_lora_weights.safetensors`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject
from promptnet.export.tensor_file import read_tensors, write_tensors
from promptnet.inference.subject.lora import LoRALayer

NAME = "diffusers"
FILE = "pytorch_lora_weights.safetensors"
ADAPTER_KEY = "lora_adapter_metadata"
PREFIX = "unet."


def adapter_tensors(static: StaticSubject, prefix: str) -> dict[str, Tensor]:
    """Every tensor by peft's names."""
    found: dict[str, Tensor] = {}
    for name, lora in static.loras.items():
        found[f"{prefix}{name}.lora_A.weight"] = lora.A
        found[f"{prefix}{name}.lora_B.weight"] = lora.B
    return found


def adapter_config(static: StaticSubject) -> dict[str, Any]:
    """Fields of peft's LoraConfig: one rank, and alpha as large, so that nothing is scaled."""
    return {"r": static.rank, "lora_alpha": static.rank, "target_modules": sorted(static.loras)}


def write(static: StaticSubject, path: Path, passport: Passport) -> None:
    """Write the folder.

    Raises:
        ExportError: the subject has no LoRA.
    """
    static.require_lora(NAME)
    static = static.padded()
    tensors = adapter_tensors(static, PREFIX)
    # An unknown field is a TypeError in diffusers, so our own entries stand beside this one.
    own = {f"{PREFIX}{name}": value for name, value in adapter_config(static).items()}
    path.mkdir(exist_ok=True)
    write_tensors(path / FILE, tensors, {ADAPTER_KEY: json.dumps(own), **passport.metadata(NAME, tensors)})


def parse(path: Path, layers: Sequence[str]) -> Content:
    """The layers of a folder.

    Raises:
        ExportError: the file is broken or missing.
    """
    tensors, metadata = read_tensors(existing(path / FILE))
    config = {name.removeprefix(PREFIX): value for name, value in _config_in(metadata).items()}
    return parse_adapter(tensors, config, layers, PREFIX)


def parse_adapter(tensors: dict[str, Tensor], config: dict[str, Any], layers: Sequence[str], prefix: str) -> Content:
    """The layers of tensors with peft's names, scaled by alpha / rank."""
    names = {key.rpartition(".lora_")[0].removeprefix(prefix) for key in tensors}
    loras, problems = {}, []
    for name in sorted(names & set(layers)):
        down, up = (tensors.get(f"{prefix}{name}.lora_{part}.weight") for part in "AB")
        if down is None or up is None:
            problems.append(f"{name}: one of lora_A and lora_B is missing")
            continue
        alpha = config.get("lora_alpha", len(down))
        if alpha != len(down) or config.get("r", len(down)) != len(down):
            problems.append(f"{name}: its alpha is {alpha:g} and its config's rank {config.get('r')}, of {len(down)}")
        loras[name] = LoRALayer(down.float(), up.float() * alpha / len(down))
    return Content(loras, strangers=sorted(names - set(layers)), problems=problems)


def existing(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        ExportError: it is not.
    """
    if not path.is_file():
        raise ExportError(f"'{path}' does not exist: export the subject again.")
    return path


def _config_in(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata.get(ADAPTER_KEY, "{}")))
    except ValueError as error:
        raise ExportError(f"{ADAPTER_KEY} is no JSON ({error}): export the subject again.") from error


def read(pipe: Any, path: Path) -> None:
    """Load it as diffusers does."""
    pipe.load_lora_weights(str(path), weight_name=FILE, local_files_only=True)


FORMAT = FileFormat(NAME, "-diffusers", write, parse, {"diffusers": read})
