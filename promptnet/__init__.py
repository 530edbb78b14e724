"""One image of a person, redrawn in any situation by a text-to-image diffusion model.

The names below are loaded when they are first used, so that importing the package costs nothing.
`ModelMixin` is diffusers' own: `DiffusionPipeline.from_pretrained` looks for it beside a component class of ours.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from promptnet.inference.pipeline import PromptNetPipeline
    from promptnet.inference.subject.subject import Subject
    from promptnet.models.promptnet import PromptNetModel

    __version__: str

__all__ = ["ModelMixin", "PromptNetModel", "PromptNetPipeline", "Subject", "__version__"]

_HOMES = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "PromptNetModel": "promptnet.models.promptnet",
    "PromptNetPipeline": "promptnet.inference.pipeline",
    "Subject": "promptnet.inference.subject.subject",
}


def _installed_version() -> str:
    from importlib.metadata import version

    return version("promptnet")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _installed_version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'promptnet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
