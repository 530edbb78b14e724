"""The nodes of this pack."""

from comfy_api.latest import ComfyExtension, io

from . import folders
from .edits import EditConditioning, LoadEdit
from .pipelines import LoadBase
from .sampler import FusionSampler, Settings
from .subjects import Encode, LoadSubject, SaveSubject
from .words import WordsConditioning

folders.register()

NODES: list[type[io.ComfyNode]] = [
    LoadBase,
    LoadSubject,
    Encode,
    SaveSubject,
    Settings,
    FusionSampler,
    LoadEdit,
    EditConditioning,
    WordsConditioning,
]


class PromptNetExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the classes of all nodes."""
        return NODES


async def comfy_entrypoint() -> PromptNetExtension:
    """Return the extension."""
    return PromptNetExtension()
