"""How a pipeline is loaded."""

import os
from inspect import signature
from typing import Any, Self

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from promptnet.models.promptnet import PromptNetModel

_OWN = ("promptnet", "image_encoder", "feature_extractor", "sampling", "tuning", "text_layer")


class LoadingMixin(DiffusionPipeline):
    """Loads from folders in diffusers layout and from the Hub."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """diffusers' `from_pretrained`; `promptnet` may also be the folder or Hub id of an encoder.

        All parts are loaded as float32 unless `dtype` says otherwise, whatever they were stored as.

        Raises:
            ValueError: there is no such folder, and it cannot be had from the Hub; or a weights file is broken.
        """
        # diffusers' own default; transformers' encoders would otherwise keep the type they were stored in.
        dtype = kwargs.setdefault("dtype", kwargs.pop("torch_dtype", torch.float32))
        encoder = kwargs.get("promptnet")
        if isinstance(encoder, (str, os.PathLike)):
            kwargs["promptnet"] = PromptNetModel.from_pretrained(encoder, dtype=dtype)
        path = os.fspath(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(path, **kwargs)
        except SafetensorError as error:  # transformers lets it through, without the file's name
            raise ValueError(f"A weights file of {path!r} is broken ({error}): copy or download it again.") from error
        except (OSError, ValueError) as error:
            if os.path.isdir(path):
                raise
            raise ValueError(
                f"The base model {path!r} is not a folder here and cannot be loaded from the Hugging Face Hub: give a "
                "folder in diffusers layout (with model_index.json), or a Hub id while online."
            ) from error

    @classmethod
    def from_single_file(cls, file: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a base model from one safetensors file of the original layout (Stable Diffusion 1, 2 or XL).

        Args:
            file: on this machine.
            kwargs: `promptnet` (also a folder or Hub id), `image_encoder`, `feature_extractor`, `sampling`, `tuning`
                and `text_layer` are this pipeline's; what is left goes to diffusers' `from_single_file`, such as
                `config`, a folder in diffusers layout, without which diffusers asks the Hub for the configs.

        Raises:
            ValueError: the file does not exist, is no safetensors file, or is broken.
        """
        path = os.fspath(file)
        stock = _stock_class(path)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", torch.float32))
        own = {name: kwargs.pop(name) for name in _OWN if name in kwargs}
        if isinstance(own.get("promptnet"), (str, os.PathLike)):
            own["promptnet"] = PromptNetModel.from_pretrained(own["promptnet"], dtype=dtype)
        loaded = stock.from_single_file(path, torch_dtype=dtype, **kwargs)
        taken = signature(cls.__init__).parameters
        parts = {name: part for name, part in loaded.components.items() if name in taken and name not in _OWN}
        if "force_zeros_for_empty_prompt" in loaded.config:
            parts["force_zeros_for_empty_prompt"] = loaded.config["force_zeros_for_empty_prompt"]
        return cls(**parts, **own)


def _stock_class(path: str) -> Any:
    """The pipeline of diffusers that a single file is for: SDXL's has a second text encoder."""
    if not os.path.isfile(path):
        raise ValueError(f"The file {path!r} does not exist: download it first.")
    if not path.endswith(".safetensors"):
        raise ValueError(f"{path!r} is no safetensors file, but may run code when it is read: get one that is.")
    try:
        with safe_open(path, "pt") as weights:
            is_xl = any(name.startswith("conditioner.embedders.1.") for name in weights.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"The weights file {path!r} is broken ({error}): copy or download it again.") from error
    return diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
