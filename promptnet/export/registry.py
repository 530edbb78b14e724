"""The formats of files: one file of `promptnet.export.formats` and one entry here for each."""

from collections.abc import Iterable
from pathlib import Path

from promptnet.export.errors import ExportError
from promptnet.export.formats import diffusers, kohya, peft, textual_inversion, word_table
from promptnet.export.formats.base import FileFormat
from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject

FORMATS: dict[str, FileFormat] = {
    module.FORMAT.name: module.FORMAT for module in (kohya, diffusers, peft, textual_inversion, word_table)
}
"""By name, in the order of tables."""


def formats_named(names: Iterable[str]) -> list[FileFormat]:
    """Formats by name; with a LoRA always textual-inversion too, as a LoRA without its words is somebody else.

    A word table brings its words along.

    Raises:
        ExportError: a format is not known.
    """
    asked = list(names)
    for name in asked:
        if name not in FORMATS:
            raise ExportError(f"There is no file format {name!r}: choose from {', '.join(FORMATS)}.")
    needs_words = not asked or any(not FORMATS[name].timed for name in asked)
    return [found for name, found in FORMATS.items() if name in asked or (needs_words and not found.has_lora)]


def check_word_positions(positions: str) -> None:
    """Refuse words that stock text encoders would give position embeddings.

    Args:
        positions: `word_positions` of the pipeline that the subject was made with.

    Raises:
        ExportError: they are "published".
    """
    if positions == "published":
        raise ExportError(
            "word_positions='published' has no file format: other software gives every word the position embedding "
            "of its place, and these words were made without. Use in_stock_pipeline, or an encoder with 'natural'."
        )


def write_files(
    static: StaticSubject, names: Iterable[str], folder: Path, stem: str, passport: Passport
) -> dict[str, Path]:
    """Write exports of some formats into a folder.

    Args:
        static: what is written.
        names: of formats.
        folder: an existing one.
        stem: what the names of files begin with.
        passport: for all of them.

    Returns:
        Path of each format's file or folder.

    Raises:
        ExportError: a format is not known, or the subject has no LoRA for it.
    """
    written = {}
    for found in formats_named(names):
        path = found.path(folder, stem)
        found.write(static, path, passport)
        written[found.name] = path
    return written
