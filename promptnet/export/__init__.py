"""Exports: a subject, an edit card or an encoder as other software reads it, and proof that it does."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.export.bundle import load_bundle, write_bundle
    from promptnet.export.distillation import DistillConfig, distill
    from promptnet.export.errors import ExportError
    from promptnet.export.formats.base import FileFormat
    from promptnet.export.formats.word_table import kohya_lora, load_words
    from promptnet.export.graphs.runners import AotiGraph, OnnxGraph
    from promptnet.export.inspection import inspect_file
    from promptnet.export.passport import Passport
    from promptnet.export.prompt_schedules import PromptSchedule, prompt_schedule
    from promptnet.export.registry import FORMATS, write_files
    from promptnet.export.static_subject import StaticSubject
    from promptnet.export.static_words import mean_static, timed_words
    from promptnet.export.stock import in_stock_pipeline
    from promptnet.export.stock_words import in_stock_with_words
    from promptnet.export.timed import TimedWords
    from promptnet.export.verification.run import verify
    from promptnet.export.verification.verdict import Verdict

__all__ = [
    "FORMATS",
    "AotiGraph",
    "DistillConfig",
    "ExportError",
    "FileFormat",
    "OnnxGraph",
    "Passport",
    "PromptSchedule",
    "StaticSubject",
    "TimedWords",
    "Verdict",
    "distill",
    "in_stock_pipeline",
    "in_stock_with_words",
    "inspect_file",
    "kohya_lora",
    "load_bundle",
    "load_words",
    "mean_static",
    "prompt_schedule",
    "timed_words",
    "verify",
    "write_bundle",
    "write_files",
]

_HOMES = {
    "AotiGraph": "promptnet.export.graphs.runners",
    "DistillConfig": "promptnet.export.distillation",
    "ExportError": "errors",
    "FORMATS": "registry",
    "FileFormat": "promptnet.export.formats.base",
    "OnnxGraph": "promptnet.export.graphs.runners",
    "Passport": "passport",
    "PromptSchedule": "promptnet.export.prompt_schedules",
    "StaticSubject": "static_subject",
    "TimedWords": "promptnet.export.timed",
    "Verdict": "promptnet.export.verification.verdict",
    "distill": "promptnet.export.distillation",
    "in_stock_pipeline": "stock",
    "in_stock_with_words": "promptnet.export.stock_words",
    "inspect_file": "inspection",
    "kohya_lora": "promptnet.export.formats.word_table",
    "load_bundle": "bundle",
    "load_words": "promptnet.export.formats.word_table",
    "mean_static": "static_words",
    "prompt_schedule": "promptnet.export.prompt_schedules",
    "timed_words": "static_words",
    "verify": "promptnet.export.verification.run",
    "write_bundle": "bundle",
    "write_files": "registry",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
