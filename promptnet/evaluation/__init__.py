"""Evaluations on held-out people. Nothing outside this room loads the test judge."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.evaluation.edits.compare import evaluate_edits
    from promptnet.evaluation.resolution.compare import evaluate_resolution
    from promptnet.evaluation.subjects.base_model import evaluate_base
    from promptnet.evaluation.subjects.compare import evaluate_avatars
    from promptnet.evaluation.subjects.tune import tune_settings

__all__ = [
    "evaluate_avatars",
    "evaluate_base",
    "evaluate_edits",
    "evaluate_resolution",
    "tune_settings",
]

_HOMES = {
    "evaluate_avatars": "promptnet.evaluation.subjects.compare",
    "evaluate_base": "promptnet.evaluation.subjects.base_model",
    "evaluate_edits": "promptnet.evaluation.edits.compare",
    "evaluate_resolution": "promptnet.evaluation.resolution.compare",
    "tune_settings": "promptnet.evaluation.subjects.tune",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
