"""Drawing: the one loop and its rules, the per-user artefact, per-user tuning, the pipeline."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptnet.inference.pipeline import PromptNetPipeline
    from promptnet.inference.sampling.config import PUBLISHED, SamplingConfig
    from promptnet.inference.sampling.fusion import FusionSampling, fuse
    from promptnet.inference.sampling.loop import Rule, Term, UNetInputs, sample
    from promptnet.inference.sampling.schedule import Step
    from promptnet.inference.subject.subject import Subject

__all__ = [
    "PUBLISHED",
    "FusionSampling",
    "PromptNetPipeline",
    "Rule",
    "SamplingConfig",
    "Step",
    "Subject",
    "Term",
    "UNetInputs",
    "fuse",
    "sample",
]

_HOMES = {
    "PUBLISHED": "sampling.config",
    "FusionSampling": "sampling.fusion",
    "PromptNetPipeline": "pipeline",
    "Rule": "sampling.loop",
    "SamplingConfig": "sampling.config",
    "Step": "sampling.schedule",
    "Subject": "subject.subject",
    "Term": "sampling.loop",
    "UNetInputs": "sampling.loop",
    "fuse": "sampling.fusion",
    "sample": "sampling.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptnet.inference' has no attribute {name!r}")
    return getattr(import_module(f"promptnet.inference.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
