"""Networks: PromptNet, and prompts that hold pseudo-words."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.models.base_model import BaseModel, load_base
    from promptnet.models.convert import convert_from_published, convert_to_published
    from promptnet.models.familiarity import Familiarity
    from promptnet.models.prompt_tokens import PromptTokens, tokenize_prompts
    from promptnet.models.promptnet import PromptNetModel, PromptNetOutput
    from promptnet.models.text import PromptStates, encode_prompts, encode_tokens
    from promptnet.models.text_encoders import TextEncoders, text_encoders_of

__all__ = [
    "BaseModel",
    "Familiarity",
    "PromptNetModel",
    "PromptNetOutput",
    "PromptStates",
    "PromptTokens",
    "TextEncoders",
    "convert_from_published",
    "convert_to_published",
    "encode_prompts",
    "encode_tokens",
    "load_base",
    "text_encoders_of",
    "tokenize_prompts",
]

_HOMES = {
    "BaseModel": "base_model",
    "Familiarity": "familiarity",
    "PromptNetModel": "promptnet",
    "PromptNetOutput": "promptnet",
    "PromptStates": "text",
    "PromptTokens": "prompt_tokens",
    "TextEncoders": "text_encoders",
    "convert_from_published": "convert",
    "convert_to_published": "convert",
    "encode_prompts": "text",
    "encode_tokens": "text",
    "load_base": "base_model",
    "text_encoders_of": "text_encoders",
    "tokenize_prompts": "prompt_tokens",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
