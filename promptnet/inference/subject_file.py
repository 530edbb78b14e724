"""A subject on disk: one safetensors file, whole or not there, checked in full when it is read.

One JSON text in the header's metadata holds the format's version, everything that is not a tensor, and a hash over
all of it and the tensors. The hash finds damage and careless edits; it is no signature.
"""

import json
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from promptnet.images.private_file import write_whole
from promptnet.inference.deltas import LowRankDelta
from promptnet.inference.subject import FORMAT_VERSION, Subject, SubjectError, hash_content

MAX_FILE_BYTES = 256 * 1024 * 1024
_KEY = "promptnet.subject"


def save_subject(subject: Subject, path: Path) -> None:
    """See `Subject.save`: temporary file in the same folder, fsync, rename; mode 0600 from the first byte on."""
    if not path.parent.is_dir():
        raise SubjectError(f"Subject file '{path}' cannot be written: create the folder '{path.parent}' first.")
    if path.is_dir():
        raise SubjectError(f"Subject file '{path}' cannot be written: this is a folder. Name a file in it.")
    data = _serialised(subject)
    try:
        write_whole(path, data)
    except OSError as error:
        raise SubjectError(
            f"Subject file '{path}' cannot be written ({error.strerror or error}): "
            "check the disk's free space and the folder's permissions."
        ) from error


def _serialised(subject: Subject) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in subject.tensors().items()}
    header = {"version": FORMAT_VERSION, "content_hash": subject.content_hash, **subject.texts()}
    return safetensors.torch.save(tensors, metadata={_KEY: json.dumps(header, sort_keys=True)})


def load_subject(path: Path) -> Subject:
    """See `Subject.load`."""
    try:
        return _parsed(_read(path))
    except SubjectError as error:
        raise SubjectError(f"Subject file '{path}' cannot be used: {error}") from error
    except OSError as error:
        raise SubjectError(f"Subject file '{path}' cannot be read ({error.strerror or error}).") from error


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SubjectError("it does not exist. Check the path, or make one with `promptnet customize`.") from error
    if not stat.S_ISREG(status.st_mode):
        raise SubjectError("it is a folder or a device, not a file.")
    if status.st_size > MAX_FILE_BYTES:
        raise SubjectError(
            f"it has {status.st_size} bytes, and a subject has at most {MAX_FILE_BYTES}: this is something else."
        )
    return path.read_bytes()


def _parsed(data: bytes) -> Subject:
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SubjectError(
            f"it is no safetensors file, or was cut short ({error}). Copy it again, or customise again."
        ) from error
    header = _header(data)
    if header["version"] != FORMAT_VERSION:
        raise SubjectError(
            f"it has format version {header['version']!r}, and this promptnet reads {FORMAT_VERSION}. "
            "Use the promptnet that wrote it, or customise again."
        )
    texts = {name: value for name, value in header.items() if name not in ("version", "content_hash")}
    if hash_content(texts, tensors) != header.get("content_hash"):
        raise SubjectError("its content was altered since it was saved. Copy it again, or customise again.")
    return _assembled(texts, tensors)


def _header(data: bytes) -> dict[str, Any]:
    """Our JSON in the metadata of a header that safetensors has already accepted."""
    header_size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
    try:
        header = json.loads(metadata[_KEY])
        header["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SubjectError(
            "it is a safetensors file, but no subject. Give the file that `promptnet customize` wrote."
        ) from error
    return header


def _assembled(texts: dict[str, Any], tensors: dict[str, Tensor]) -> Subject:
    """The checks here and in `Subject` are for files that were made wrong, hash and all."""
    try:
        own = {name: tensors.pop(name) for name in ("reference_latents", "vision_states", "weights")}
        return Subject(**own, **texts, deltas=_paired(tensors))
    except SubjectError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SubjectError(f"it is not laid out as a subject ({error}). Customise again.") from error


def _paired(tensors: dict[str, Tensor]) -> dict[str, LowRankDelta]:
    """deltas.<name>.down and deltas.<name>.up, each with its other half and nothing else."""
    deltas = {}
    for key in [key for key in tensors if key.startswith("deltas.") and key.endswith(".down")]:
        name = key.removeprefix("deltas.").removesuffix(".down")
        deltas[name] = LowRankDelta(down=tensors.pop(key), up=tensors.pop(f"deltas.{name}.up"))
    if tensors:
        raise SubjectError(f"it has tensors that do not belong to a subject: {', '.join(sorted(tensors))}.")
    return deltas
