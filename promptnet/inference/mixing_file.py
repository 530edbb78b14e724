"""An edit card on disk: one small safetensors file, whole or not there, checked in full when it is read."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from promptnet.images.private_file import write_whole
from promptnet.inference.mixing import MixingError, MixingWeights
from promptnet.inference.subject import hash_content

FORMAT_VERSION = 1
MAX_FILE_BYTES = 1024 * 1024
_KEY = "promptnet.mixing"
_SHARED_MODE = 0o644  # a card tells nothing about anybody


def save_card(card: MixingWeights, path: Path) -> None:
    """See `MixingWeights.save`."""
    if not path.parent.is_dir():
        raise MixingError(f"Edit card '{path}' cannot be written: create the folder '{path.parent}' first.")
    if path.is_dir():
        raise MixingError(f"Edit card '{path}' cannot be written: this is a folder. Name a file in it.")
    tensors = {"weights": card.weights.detach().cpu().contiguous()}
    header = {"version": FORMAT_VERSION, "content_hash": hash_content(card.texts(), tensors), **card.texts()}
    data = safetensors.torch.save(tensors, metadata={_KEY: json.dumps(header, sort_keys=True)})
    try:
        write_whole(path, data)
        os.chmod(path, _SHARED_MODE)
    except OSError as error:
        raise MixingError(
            f"Edit card '{path}' cannot be written ({error.strerror or error}): "
            "check the disk's free space and the folder's permissions."
        ) from error


def load_card(path: Path) -> MixingWeights:
    """See `MixingWeights.load`."""
    try:
        return _parsed(_read(path))
    except MixingError as error:
        raise MixingError(f"Edit card '{path}' cannot be used: {error}") from error
    except OSError as error:
        raise MixingError(f"Edit card '{path}' cannot be read ({error.strerror or error}).") from error


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MixingError("it does not exist. Check the path, or make one with `promptnet optimize-edit`.") from error
    if not stat.S_ISREG(status.st_mode):
        raise MixingError("it is a folder or a device, not a file.")
    if status.st_size > MAX_FILE_BYTES:
        raise MixingError(
            f"it has {status.st_size} bytes, and an edit card at most {MAX_FILE_BYTES}: this is something else."
        )
    return path.read_bytes()


def _parsed(data: bytes) -> MixingWeights:
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MixingError(
            f"it is no safetensors file, or was cut short ({error}). Copy it again, or learn the edit again."
        ) from error
    header = _header(data)
    if header["version"] != FORMAT_VERSION:
        raise MixingError(
            f"it has format version {header['version']!r}, and this promptnet reads {FORMAT_VERSION}. "
            "Use the promptnet that wrote it, or learn the edit again."
        )
    texts = {name: value for name, value in header.items() if name not in ("version", "content_hash")}
    if hash_content(texts, tensors) != header.get("content_hash"):
        raise MixingError("its content was altered since it was saved. Copy it again, or learn the edit again.")
    try:
        return MixingWeights(**tensors, **texts)
    except TypeError as error:
        raise MixingError(f"it is not laid out as an edit card ({error}). Learn the edit again.") from error


def _header(data: bytes) -> dict[str, Any]:
    """Our JSON in the metadata of a header that safetensors has already accepted."""
    header_size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
    try:
        header = json.loads(metadata[_KEY])
        header["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MixingError(
            "it is a safetensors file, but no edit card. Give the file that `promptnet optimize-edit` wrote."
        ) from error
    return header
