"""Exports: a subject, an edit card or an encoder as other software reads it, and proof that it does."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.export.errors import ExportError
    from promptnet.export.passport import Passport
    from promptnet.export.registry import FORMATS, FileFormat, write_files
    from promptnet.export.static_subject import StaticSubject
    from promptnet.export.static_words import mean_static
    from promptnet.export.stock import in_stock_pipeline
    from promptnet.export.verification.run import verify
    from promptnet.export.verification.verdict import Verdict

__all__ = [
    "FORMATS",
    "ExportError",
    "FileFormat",
    "Passport",
    "StaticSubject",
    "Verdict",
    "in_stock_pipeline",
    "mean_static",
    "verify",
    "write_files",
]

_HOMES = {
    "ExportError": "errors",
    "FORMATS": "registry",
    "FileFormat": "registry",
    "Passport": "passport",
    "StaticSubject": "static_subject",
    "Verdict": "promptnet.export.verification.verdict",
    "in_stock_pipeline": "stock",
    "mean_static": "static_words",
    "verify": "promptnet.export.verification.run",
    "write_files": "registry",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
