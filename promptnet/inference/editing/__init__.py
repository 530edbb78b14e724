"""Edits: learned mixing weights as data, as a rule of the loop, on images, and in stock pipelines."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.inference.editing.card import EditCard, EditError, start_weights
    from promptnet.inference.editing.edit_image import InvertedImages, edit_image, invert_images
    from promptnet.inference.editing.inversion import Inversion, invert, make_scheduler
    from promptnet.inference.editing.rule import Mixing, mix, mixing_rule
    from promptnet.inference.editing.stock_pipeline import StockEdit, stock_arguments

__all__ = [
    "EditCard",
    "EditError",
    "Inversion",
    "InvertedImages",
    "Mixing",
    "StockEdit",
    "edit_image",
    "invert",
    "invert_images",
    "make_scheduler",
    "mix",
    "mixing_rule",
    "start_weights",
    "stock_arguments",
]

_HOMES = {
    "Inversion": "inversion",
    "InvertedImages": "edit_image",
    "Mixing": "rule",
    "EditError": "card",
    "EditCard": "card",
    "StockEdit": "stock_pipeline",
    "edit_image": "edit_image",
    "invert": "inversion",
    "invert_images": "edit_image",
    "make_scheduler": "inversion",
    "mix": "rule",
    "mixing_rule": "rule",
    "start_weights": "card",
    "stock_arguments": "stock_pipeline",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, {"MixingError": "EditError", "MixingWeights": "EditCard"})
