"""One image of a person, redrawn in any situation by a text-to-image diffusion model.

The names below are loaded when they are first used, so that importing the package costs nothing.
`ModelMixin` is diffusers' own: `DiffusionPipeline.from_pretrained` looks for it beside a component class of ours.
"""

from typing import TYPE_CHECKING, Any

from promptnet.inference.diffusers_name import give_name
from promptnet.io.lazy_exports import lazy_exports

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


_find, __dir__ = lazy_exports(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    return _find(name)


give_name()
