"""Words for each noise level with the subject's own LoRA, for hosts whose prompt may change while they draw.

No other software knows this layout: `promptnet.export.in_stock_with_words` reads it into diffusers' pipelines, and our
nodes into ComfyUI's conditioning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.export.formats import kohya
from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.formats.diffusers import existing, parse_adapter
from promptnet.export.passport import PREFIX, Passport, fingerprint_in
from promptnet.export.static_subject import StaticSubject
from promptnet.export.tensor_file import read_tensors, write_tensors
from promptnet.export.timed import TimedWords
from promptnet.inference.subject.lora import LoRALayer

NAME = "word-table"
SUFFIX = "-word-table.safetensors"
_WORDS, _TIMESTEPS, _LORA = "words.", "timesteps", "unet."


def write(static: StaticSubject, path: Path, passport: Passport) -> None:
    """Write the file.

    Raises:
        ExportError: the subject comes without a table.
    """
    timed = static.timed
    if timed is None:
        raise ExportError(f"{NAME}: this subject has static words alone: give StaticSubject its timed= words, too.")
    tensors = {f"{_WORDS}{place}": part for place, part in enumerate(timed.parts())}
    tensors[_TIMESTEPS] = timed.timesteps.float()
    for name, lora in timed.loras.items():
        tensors |= {f"{_LORA}{name}.lora_A.weight": lora.A, f"{_LORA}{name}.lora_B.weight": lora.B}
    write_tensors(path, tensors, passport.metadata(NAME, tensors))


def parse(path: Path, layers: Sequence[str]) -> Content:
    """The words of a file, (T, L, width) for each text encoder, and its layers.

    Raises:
        ExportError: the file is broken.
    """
    tensors, _ = read_tensors(path)
    words = _words_in(tensors)
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(_WORDS) and key != _TIMESTEPS}
    found = parse_adapter(rest, {}, layers, _LORA)
    return Content(found.loras, [part.float() for part in words], found.strangers, found.problems)


def load_words(path: str | Path) -> TimedWords:
    """Read a word table.

    Raises:
        ExportError: the file does not exist, is broken, or is something else.
    """
    tensors, metadata = read_tensors(existing(Path(path)))
    if metadata.get(f"{PREFIX}format") != NAME or _TIMESTEPS not in tensors or not _words_in(tensors):
        raise ExportError(f"'{path}' is no word table: write one with `promptnet export --to {NAME}`.")
    parts = _words_in(tensors)
    names = {key.removeprefix(_LORA).rpartition(".lora_")[0] for key in tensors if key.startswith(_LORA)}
    try:
        loras = {name: LoRALayer(*(tensors[f"{_LORA}{name}.lora_{part}.weight"] for part in "AB")) for name in names}
        words = torch.cat(parts, dim=-1)
    except (KeyError, RuntimeError) as error:
        raise ExportError(f"'{path}' is incomplete ({error}): export the subject again.") from error
    widths = tuple(part.shape[-1] for part in parts)
    return TimedWords(words, tensors[_TIMESTEPS], widths, loras, fingerprint_in(metadata))


def kohya_lora(words: TimedWords) -> dict[str, Tensor]:
    """The table's LoRA as the tensors of a kohya file, which hosts can load without a file; empty without a LoRA."""
    return kohya.tensors_of(StaticSubject(words.words[0], words.widths, words.loras))


def _words_in(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[key] for key in sorted(key for key in tensors if key.startswith(_WORDS))]


def read(pipe: Any, path: Path) -> TimedWords:
    """Read it for `in_stock_with_words`; the pipeline itself does not change."""
    return load_words(path)


FORMAT = FileFormat(NAME, SUFFIX, write, parse, {"diffusers": read}, timed=True)
