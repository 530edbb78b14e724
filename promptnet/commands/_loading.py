"""Load a pipeline from the names on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from promptnet.commands._base_folder import BaseFolder
from promptnet.commands._checks import check_device, check_seed
from promptnet.commands._threads import choose_threads

if TYPE_CHECKING:
    import torch
    from torch import Generator

    from promptnet import PromptNetPipeline

EMBEDDED = "checkpoints/tiny"


def find_base(base: str) -> str:
    """Return a base model's folder, or the id of a model on the Hugging Face Hub.

    The embedded model is also found from outside the checkout that holds the package.

    Raises:
        FileNotFoundError: the name is neither.
    """
    if (Path(base) / "model_index.json").is_file():
        return base
    checkout = Path(__file__).parents[2] / base
    if base.startswith("checkpoints/") and (checkout / "model_index.json").is_file():
        return str(checkout)
    if Path(base).exists():
        raise FileNotFoundError(f"base model '{base}' has no model_index.json: give a folder in diffusers layout")
    if not _may_be_hub_id(base):
        raise FileNotFoundError(f"base model '{base}' does not exist: give --base a folder or a Hub id (owner/name)")
    return base


def _may_be_hub_id(name: str) -> bool:
    return not name.startswith(("checkpoints/", ".", "/", "~")) and name.count("/") == 1


def find_part(name: str, option: str) -> str:
    """Return a folder with one network, or the id of a model on the Hugging Face Hub.

    Args:
        name: of the folder or model.
        option: that it was given with.

    Raises:
        FileNotFoundError: the name is neither.
    """
    if (Path(name) / "config.json").is_file():
        return name
    if Path(name).exists():
        raise FileNotFoundError(f"--{option} '{name}' has no config.json: give the network's own folder")
    if not _may_be_hub_id(name):
        raise FileNotFoundError(f"--{option} '{name}' does not exist: give a folder or a Hub id (owner/name)")
    return name


def pick_device(device: str) -> str:
    """Return a device: for `"auto"` the available accelerator, else the CPU; a named device if it is available.

    Raises:
        ValueError: the device is not available on this machine.
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
    """Turn off the libraries' own progress bars and advice."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def make_generator(seed: int) -> Generator:
    """Return a torch generator on the CPU.

    Raises:
        ValueError: the seed is longer than 64 bits.
    """
    import torch

    check_seed(seed)
    return torch.Generator().manual_seed(seed)


def check_model(
    base: str, device: str, promptnet: str | None = None, image_encoder: str | None = None, *, subjects: bool = False
) -> BaseFolder:
    """Check the options that name a model, and return what its folder says.

    Args:
        base: folder in diffusers layout, or Hub id.
        device: "auto", "cpu", "cuda", ...
        promptnet: folder or Hub id of an encoder.
        image_encoder: folder or Hub id of a CLIP image encoder.
        subjects: whether subjects are to be made or generated.

    Raises:
        OSError: a folder does not exist or lacks a file.
        ValueError: the device is not known, or subjects need a part that is missing.
    """
    check_device(device)
    folder = BaseFolder(find_base(base))
    given = {"promptnet": promptnet, "image_encoder": image_encoder}
    for component, name in given.items():
        if name is not None:
            find_part(name, component.replace("_", "-"))
    if subjects:
        folder.check_subjects(given)
    return folder


def choose_scheduler(pipe: PromptNetPipeline, name: str | None, *, renoising: bool) -> None:
    """Give a pipeline the scheduler of `--scheduler`.

    Without the option the base model's own stays; where it cannot re-noise, which Fusion Sampling needs, DDIM takes
    its place, and a line on stderr says so.
    """
    from promptnet.inference.editing.inversion import converted_scheduler
    from promptnet.inference.sampling.scheduler_names import RENOISING_SCHEDULERS

    own = type(pipe.scheduler).__name__
    if name is None and renoising and own not in RENOISING_SCHEDULERS:
        name = RENOISING_SCHEDULERS[0]
        print(f"{own} cannot re-noise, which Fusion Sampling needs: using {name} (--scheduler)", file=sys.stderr)
    if name is not None and name != own:
        pipe.scheduler = converted_scheduler(name, pipe.scheduler.config)


def computing_type(dtype: str, device: str) -> str:
    """Return the type to compute in: float32 where a CPU has no instructions for the half one, and say so on stderr.

    Without them each convolution is some 17 times slower, and tuning takes minutes a step.

    Args:
        dtype: "float32", "float16" or "bfloat16".
        device: a torch device's name.
    """
    if dtype == "float32" or not device.startswith("cpu") or has_half_instructions(dtype):
        return dtype
    print(f"this CPU has no instructions for {dtype} and is many times slower in it: using float32", file=sys.stderr)
    return "float32"


def has_half_instructions(dtype: str) -> bool:
    """Return whether this CPU computes in a half type by itself; of others than x86, torch does not say: True."""
    import platform

    import torch

    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    names = {
        "bfloat16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        "float16": ("_is_amx_fp16_supported",),
    }
    return any(getattr(torch.cpu, name, lambda: False)() for name in names[dtype])


def load_pipeline(
    base: str,
    device: str,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    dtype: str = "float32",
) -> PromptNetPipeline:
    """Load the pipeline of a base model, with the encoder and image encoder that it lacks from elsewhere.

    Args:
        base: folder in diffusers layout, or Hub id.
        device: "auto", "cpu", "cuda", ...
        promptnet: folder or Hub id of an encoder; None takes the base model's own.
        image_encoder: folder or Hub id of a CLIP image encoder; None takes the base model's own.
        dtype: "float32", "float16" or "bfloat16"; see `computing_type` for CPUs.

    Raises:
        OSError: one of them does not exist or lacks a file.
        ValueError: one of their files is broken, or the device is not available.
    """
    found, place = find_base(base), pick_device(device)
    given = {"promptnet": promptnet, "image-encoder": image_encoder}
    encoder, vision = (None if name is None else find_part(name, option) for option, name in given.items())
    quiet()
    import torch
    from safetensors import SafetensorError

    from promptnet import PromptNetPipeline

    if str(place) == "cpu":
        choose_threads()
    kind: torch.dtype = getattr(torch, computing_type(dtype, str(place)))
    parts: dict[str, object] = {} if encoder is None else {"promptnet": encoder}
    try:
        if vision is not None:
            parts |= _image_encoder(vision, kind)
        return PromptNetPipeline.from_pretrained(found, use_safetensors=True, dtype=kind, **parts).to(place)
    except SafetensorError as error:  # transformers does not convert it, and it does not name the file
        named = ", ".join(f"'{name}'" for name in (base, encoder, vision) if name is not None)
        raise ValueError(f"a weights file of {named} is broken ({error}): copy or download it again") from error


def _image_encoder(name: str, dtype: torch.dtype) -> dict[str, object]:
    """Load a CLIP image encoder and its preprocessing, by the names of the pipeline's components."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    try:
        return {
            "image_encoder": CLIPVisionModel.from_pretrained(name, use_safetensors=True, dtype=dtype),
            "feature_extractor": CLIPImageProcessor.from_pretrained(name),
        }
    except OSError as error:  # its message may name only the Hub's address
        raise ValueError(f"--image-encoder '{name}' cannot be loaded: {error}") from error
