"""A subject's words as a textual inversion: one key for Stable Diffusion 1 and 2, `clip_l` and `clip_g` for SDXL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promptnet.export.formats.base import Content, FileFormat
from promptnet.export.passport import Passport
from promptnet.export.static_subject import StaticSubject
from promptnet.export.tensor_file import read_tensors, write_tensors

NAME = "textual-inversion"
SDXL_KEYS = ("clip_l", "clip_g")
SUFFIX = "-words.safetensors"


def token_of(path: Path) -> str:
    """What stands for the subject in a prompt: the name of the file without its ending, in angle brackets."""
    return f"<{path.name.removesuffix(SUFFIX)}>"


def write(static: StaticSubject, path: Path, passport: Passport) -> None:
    """Write the file."""
    keys = SDXL_KEYS if len(static.widths) == 2 else (token_of(path),)
    tensors = dict(zip(keys, static.word_parts(), strict=True))
    write_tensors(path, tensors, passport.metadata(NAME, tensors))


def parse(path: Path, layers: Sequence[str]) -> Content:
    """The words of a file, for as many text encoders as it has keys.

    Raises:
        ExportError: the file is broken.
    """
    tensors, _ = read_tensors(path)
    if len(tensors) == 1:
        return Content(words=[tensor.float() for tensor in tensors.values()])
    strangers = [key for key in tensors if key not in SDXL_KEYS]
    return Content(words=[tensors[key].float() for key in SDXL_KEYS if key in tensors], strangers=strangers)


def read(pipe: Any, path: Path) -> None:
    """Load it as diffusers does: for SDXL once for each text encoder."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    if len(tensors) == 1:
        pipe.load_textual_inversion(str(path.parent), weight_name=path.name, local_files_only=True)
        return
    encoders = ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2))
    for key, (text_encoder, tokenizer) in zip(SDXL_KEYS, encoders, strict=True):
        pipe.load_textual_inversion(tensors[key], token=token_of(path), text_encoder=text_encoder, tokenizer=tokenizer)


FORMAT = FileFormat(NAME, SUFFIX, write, parse, {"diffusers": read}, has_lora=False)
