"""Pretraining of the encoder."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.training.pretrain.stage import PretrainStage

__all__ = [
    "PretrainStage",
]

_HOMES = {
    "PretrainStage": "stage",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
