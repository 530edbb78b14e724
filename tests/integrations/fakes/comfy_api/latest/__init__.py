"""What the nodes use of ComfyUI's node API V3, written from its documentation: no line of ComfyUI is here."""

from . import io as io


class ComfyExtension:
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        raise NotImplementedError
