"""What has weights: the image-to-word encoder, and the text encoder's way with pseudo-words."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptnet.models.convert import convert_from_published, convert_to_published
    from promptnet.models.promptnet import PromptNetModel, PromptNetOutput
    from promptnet.models.text import PromptStates, PromptTokens, encode_prompts, encode_tokens, tokenize_prompts

__all__ = [
    "PromptNetModel",
    "PromptNetOutput",
    "PromptStates",
    "PromptTokens",
    "convert_from_published",
    "convert_to_published",
    "encode_prompts",
    "encode_tokens",
    "tokenize_prompts",
]

_HOMES = {
    "PromptNetModel": "promptnet",
    "PromptNetOutput": "promptnet",
    "PromptStates": "text",
    "PromptTokens": "text",
    "convert_from_published": "convert",
    "convert_to_published": "convert",
    "encode_prompts": "text",
    "encode_tokens": "text",
    "tokenize_prompts": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptnet.models' has no attribute {name!r}")
    return getattr(import_module(f"promptnet.models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
