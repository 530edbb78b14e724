"""What every file format has: a writer, readers of others, our own parser, and how exact it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject
from promptnet.inference.subject.lora import LoRALayer


@dataclass(frozen=True, eq=False)
class Content:
    """What our own parser finds in a file.

    Args:
        loras: by layer of the U-Net, alpha applied.
        words: each text encoder's part, (L, width).
        strangers: keys that belong to no layer of this U-Net.
        problems: what is wrong besides, each naming a layer.
    """

    loras: Mapping[str, LoRALayer] = field(default_factory=dict)
    words: Sequence[Tensor] = ()
    strangers: Sequence[str] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class FileFormat:
    """One format of files.

    Args:
        name: on the command line.
        suffix: of the file's or folder's name, behind the subject's.
        write: (subject, path, passport); float32.
        parse: (path, names of the U-Net's layers) -> `Content`.
        readers: software -> (stock pipeline, path): loads the file as that software does. They run in a fresh process.
            Of a timed format they return its `TimedWords`.
        tolerance: relative difference that is allowed between what a reader draws with the file and what was written.
        has_lora: whether the format carries a LoRA; otherwise words.
        timed: whether it carries words for each noise level, and the LoRA for the subject's rows alone.
    """

    name: str
    suffix: str
    write: Callable[[StaticSubject, Path, Passport], None]
    parse: Callable[[Path, Sequence[str]], Content]
    readers: Mapping[str, Callable[[Any, Path], Any]]
    tolerance: float = 1e-6
    has_lora: bool = True
    timed: bool = False

    def path(self, folder: Path, stem: str) -> Path:
        """Where an export of this format is written."""
        return folder / f"{stem}{self.suffix}"
