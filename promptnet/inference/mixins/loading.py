"""How a pipeline is loaded."""

import os
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError

from promptnet.models.promptnet import PromptNetModel


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
