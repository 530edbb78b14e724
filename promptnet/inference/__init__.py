"""Sampling, subjects, tuning, editing and the pipeline. A lean installation runs all of it."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.inference.admission import (
        Admission,
        ForeignReferenceError,
        Registration,
        UnfamiliarReferenceWarning,
        admit,
    )
    from promptnet.inference.calibration import calibrate
    from promptnet.inference.pipeline import PromptNetPipeline
    from promptnet.inference.references import decode_latents, encode_pixels
    from promptnet.inference.registration import register
    from promptnet.inference.sampling.conditions import Networks, PlainPrompts, SubjectPrompts
    from promptnet.inference.sampling.config import PUBLISHED, SamplingConfig
    from promptnet.inference.sampling.fusion import FusionSampling, fuse
    from promptnet.inference.sampling.guidance import (
        ClassifierFreeGuidance,
        Condition,
        GuidanceRescale,
        References,
        Refinement,
    )
    from promptnet.inference.sampling.loop import Mode, Rule, Term, UNetInputs, evaluate, predict_output, sample
    from promptnet.inference.sampling.phases import Phase, Role
    from promptnet.inference.sampling.requests import Request, make_requests
    from promptnet.inference.sampling.rules import build_rules
    from promptnet.inference.sampling.schedule import Step, plan
    from promptnet.inference.subject.subject import Subject, SubjectError
    from promptnet.inference.tuning.config import TuningConfig, TuningError
    from promptnet.inference.tuning.customize import customize_subject

__all__ = [
    "PUBLISHED",
    "Admission",
    "ClassifierFreeGuidance",
    "Condition",
    "ForeignReferenceError",
    "FusionSampling",
    "GuidanceRescale",
    "Mode",
    "Networks",
    "Phase",
    "PlainPrompts",
    "PromptNetPipeline",
    "References",
    "Refinement",
    "Registration",
    "Request",
    "Role",
    "Rule",
    "SamplingConfig",
    "Step",
    "Subject",
    "SubjectError",
    "SubjectPrompts",
    "Term",
    "TuningConfig",
    "TuningError",
    "UNetInputs",
    "UnfamiliarReferenceWarning",
    "admit",
    "build_rules",
    "calibrate",
    "customize_subject",
    "decode_latents",
    "encode_pixels",
    "evaluate",
    "fuse",
    "make_requests",
    "plan",
    "predict_output",
    "register",
    "sample",
]

_HOMES = {
    "Admission": "admission",
    "ForeignReferenceError": "admission",
    "Registration": "admission",
    "UnfamiliarReferenceWarning": "admission",
    "admit": "admission",
    "calibrate": "calibration",
    "ClassifierFreeGuidance": "promptnet.inference.sampling.guidance",
    "Condition": "promptnet.inference.sampling.guidance",
    "FusionSampling": "promptnet.inference.sampling.fusion",
    "GuidanceRescale": "promptnet.inference.sampling.guidance",
    "Mode": "promptnet.inference.sampling.loop",
    "Networks": "promptnet.inference.sampling.conditions",
    "PUBLISHED": "promptnet.inference.sampling.config",
    "Phase": "promptnet.inference.sampling.phases",
    "PlainPrompts": "promptnet.inference.sampling.conditions",
    "PromptNetPipeline": "pipeline",
    "References": "promptnet.inference.sampling.guidance",
    "Refinement": "promptnet.inference.sampling.guidance",
    "Request": "promptnet.inference.sampling.requests",
    "Role": "promptnet.inference.sampling.phases",
    "Rule": "promptnet.inference.sampling.loop",
    "SamplingConfig": "promptnet.inference.sampling.config",
    "Step": "promptnet.inference.sampling.schedule",
    "Subject": "promptnet.inference.subject.subject",
    "SubjectError": "promptnet.inference.subject.subject",
    "SubjectPrompts": "promptnet.inference.sampling.conditions",
    "Term": "promptnet.inference.sampling.loop",
    "TuningConfig": "promptnet.inference.tuning.config",
    "TuningError": "promptnet.inference.tuning.config",
    "UNetInputs": "promptnet.inference.sampling.loop",
    "build_rules": "promptnet.inference.sampling.rules",
    "customize_subject": "promptnet.inference.tuning.customize",
    "evaluate": "promptnet.inference.sampling.loop",
    "fuse": "promptnet.inference.sampling.fusion",
    "make_requests": "promptnet.inference.sampling.requests",
    "plan": "promptnet.inference.sampling.schedule",
    "decode_latents": "promptnet.inference.references",
    "encode_pixels": "promptnet.inference.references",
    "register": "registration",
    "predict_output": "promptnet.inference.sampling.loop",
    "sample": "promptnet.inference.sampling.loop",
}

_RENAMED = {"SamplingDefaults": "SamplingConfig"}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, _RENAMED)
