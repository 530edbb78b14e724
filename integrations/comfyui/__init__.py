"""PromptNet's nodes for ComfyUI, which finds them by `comfy_entrypoint` (node API V3)."""

from importlib.util import find_spec

if find_spec("promptnet") is None:
    raise ImportError("PromptNet's nodes need the package promptnet in ComfyUI's Python: see this folder's README.md.")

from .extension import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
