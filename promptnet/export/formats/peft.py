"""A LoRA as a PEFT adapter folder, with a rank that vLLM-Omni's reader knows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptnet.export.errors import ExportError
from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.formats.diffusers import adapter_config, adapter_tensors, existing, parse_adapter
from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject
from promptnet.export.tensor_file import read_tensors, write_tensors
from promptnet.io.atomic import write_whole

NAME = "peft"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def write(static: StaticSubject, path: Path, passport: Passport) -> None:
    """Write the folder.

    Raises:
        ExportError: the subject has no LoRA.
    """
    static.require_lora(NAME)
    static = static.padded_for_servers()
    tensors = adapter_tensors(static, PREFIX)
    config = {
        "peft_type": "LORA",
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": static.base or None,
        **adapter_config(static),
    }
    path.mkdir(exist_ok=True)
    write_tensors(path / WEIGHTS, tensors, {"format": "pt", **passport.metadata(NAME, tensors)})
    write_whole(path / CONFIG, json.dumps(config, indent=2) + "\n")


def parse(path: Path, layers: Sequence[str]) -> Content:
    """The layers of a folder.

    Raises:
        ExportError: a file is broken or missing.
    """
    tensors, _ = read_tensors(existing(path / WEIGHTS))
    try:
        config = json.loads(existing(path / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"'{path / CONFIG}' is no JSON ({error}): export the subject again.") from error
    return parse_adapter(tensors, config, layers, PREFIX)


def read(pipe: Any, path: Path) -> None:
    """Load it as peft does; the layers are replaced inside the pipeline's U-Net."""
    from peft import PeftModel

    PeftModel.from_pretrained(pipe.unet, str(path))


FORMAT = FileFormat(NAME, "-peft", write, parse, {"peft": read})
