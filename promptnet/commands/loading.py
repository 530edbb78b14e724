"""From what the command line names to a pipeline on a device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptnet import PromptNetPipeline

EMBEDDED = "checkpoints/tiny"


def find_base(base: str) -> str:
    """A folder, or the id of a model on the Hugging Face Hub.

    The embedded model is also found from outside the checkout that the package was installed from.

    Raises:
        FileNotFoundError: it is neither.
    """
    if (Path(base) / "model_index.json").is_file():
        return base
    checkout = Path(__file__).parents[2] / base
    if base.startswith("checkpoints/") and (checkout / "model_index.json").is_file():
        return str(checkout)
    if Path(base).exists():
        raise FileNotFoundError(f"base model '{base}' has no model_index.json: give a folder in diffusers layout")
    if base.startswith(("checkpoints/", ".", "/", "~")) or base.count("/") != 1:
        raise FileNotFoundError(f"base model '{base}' does not exist: give --base a folder or a Hub id (owner/name)")
    return base


def pick_device(device: str) -> str:
    """`"auto"` as the accelerator at hand, else the CPU; a named device if it is there.

    Raises:
        ValueError: the device is not one of this machine's.
    """
    import torch

    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found.type if found else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device '{device}' is not available on this machine: use --device cpu or auto") from error
    return device


def quiet() -> None:
    """Keep the libraries' own bars and advice out of the command's output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_pipeline(
    base: str, device: str, promptnet: str | None = None, image_encoder: str | None = None
) -> PromptNetPipeline:
    """The pipeline of a base model, with the encoder and vision tower it lacks taken from elsewhere.

    Args:
        base: folder in diffusers layout, or Hub id.
        device: "auto", "cpu", "cuda", ...
        promptnet: folder of an encoder; None takes the base model's own.
        image_encoder: folder or Hub id of a CLIP vision tower; None takes the base model's own.
    """
    found, place = find_base(base), pick_device(device)
    quiet()
    from promptnet import PromptNetPipeline

    parts: dict[str, object] = {} if promptnet is None else {"promptnet": promptnet}
    if image_encoder is not None:
        from transformers import CLIPImageProcessor, CLIPVisionModel

        parts["image_encoder"] = CLIPVisionModel.from_pretrained(image_encoder)
        parts["feature_extractor"] = CLIPImageProcessor.from_pretrained(image_encoder)
    return PromptNetPipeline.from_pretrained(found, use_safetensors=True, **parts).to(place)
