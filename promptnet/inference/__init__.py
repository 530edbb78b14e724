"""Drawing: the one loop and its rules, the per-user artefact, per-user tuning, the pipeline."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptnet.inference.defaults import PUBLISHED, SamplingDefaults
    from promptnet.inference.fusion import FusionSampling, fuse
    from promptnet.inference.pipeline import PromptNetPipeline
    from promptnet.inference.sampling import Rule, Term, UNetInputs, sample
    from promptnet.inference.schedule import Step
    from promptnet.inference.subject import Subject

__all__ = [
    "PUBLISHED",
    "FusionSampling",
    "PromptNetPipeline",
    "Rule",
    "SamplingDefaults",
    "Step",
    "Subject",
    "Term",
    "UNetInputs",
    "fuse",
    "sample",
]

_HOMES = {
    "PUBLISHED": "defaults",
    "FusionSampling": "fusion",
    "PromptNetPipeline": "pipeline",
    "Rule": "sampling",
    "SamplingDefaults": "defaults",
    "Step": "schedule",
    "Subject": "subject",
    "Term": "sampling",
    "UNetInputs": "sampling",
    "fuse": "fusion",
    "sample": "sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptnet.inference' has no attribute {name!r}")
    return getattr(import_module(f"promptnet.inference.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
