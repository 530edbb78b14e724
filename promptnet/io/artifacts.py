"""What people keep, as one safetensors file: whole or not there, and checked in full when it is read.

One JSON text in the header's metadata holds the format's version, everything that is not a tensor, and a hash over
all of it and the tensors. The hash finds damage and careless edits; it is no signature.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from promptnet.io.atomic import write_whole

Made = TypeVar("Made")
Texts = dict[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class FileKind:
    """One kind of file, and how its errors speak of it.

    Args:
        key: of the JSON text in the metadata.
        version: of the format.
        max_bytes: more is something else.
        error: raised for whatever is wrong.
        title: "Subject file".
        noun: "a subject".
        maker: the command that makes one.
        again: what to do where the file is no good.
        mode: of the file, where others may read it.
    """

    key: str
    version: int
    max_bytes: int
    error: type[ValueError]
    title: str
    noun: str
    maker: str
    again: str
    mode: int | None = None

    def save(self, path: Path, texts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Temporary file in the same folder, fsync, rename; an old file is replaced whole.

        Raises:
            ValueError: of the kind's own class; the folder does not exist, or the file cannot be written.
        """
        if not path.parent.is_dir():
            raise self.error(f"{self.title} '{path}' cannot be written: create the folder '{path.parent}' first.")
        if path.is_dir():
            raise self.error(f"{self.title} '{path}' cannot be written: this is a folder. Name a file in it.")
        data = self.to_bytes(texts, tensors)
        try:
            write_whole(path, data)
            if self.mode is not None:
                os.chmod(path, self.mode)
        except OSError as error:
            raise self.error(
                f"{self.title} '{path}' cannot be written ({error.strerror or error}): "
                "check the disk's free space and the folder's permissions."
            ) from error

    def load(self, path: Path, make: Callable[[Texts, Tensors], Made]) -> Made:
        """What `make` makes of a file's texts and tensors, believing nothing before it was checked.

        Args:
            path: of the file.
            make: may raise the kind's own error; other errors mean that the file is laid out otherwise.

        Raises:
            ValueError: of the kind's own class; missing, too large, broken, altered, of another version or kind.
        """
        try:
            texts, tensors = self._parsed(self._read(path))
            return self._made(make, texts, tensors)
        except self.error as error:
            raise self.error(f"{self.title} '{path}' cannot be used: {error}") from error
        except OSError as error:
            raise self.error(f"{self.title} '{path}' cannot be read ({error.strerror or error}).") from error

    def from_bytes(self, data: bytes, make: Callable[[Texts, Tensors], Made]) -> Made:
        """What `load` makes of a file with this content.

        Raises:
            ValueError: as `load` does.
        """
        try:
            self._check_size(len(data))
            texts, tensors = self._parsed(data)
            return self._made(make, texts, tensors)
        except self.error as error:
            raise self.error(f"The given {self.title.lower()} cannot be used: {error}") from error

    def to_bytes(self, texts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
        """The content of the file that `save` writes."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"version": self.version, "content_hash": hash_content(texts, plain), **texts}
        return safetensors.torch.save(plain, metadata={self.key: json.dumps(header, sort_keys=True)})

    def _read(self, path: Path) -> bytes:
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise self.error(f"it does not exist. Check the path, or make one with `{self.maker}`.") from error
        if not stat.S_ISREG(status.st_mode):
            raise self.error("it is a folder or a device, not a file.")
        self._check_size(status.st_size)
        return path.read_bytes()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise self.error(
                f"it has {num_bytes} bytes, and {self.noun} at most {self.max_bytes}: this is something else."
            )

    def _parsed(self, data: bytes) -> tuple[Texts, Tensors]:
        try:
            tensors = safetensors.torch.load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self.error(
                f"it is no safetensors file, or was cut short ({error}). Copy it again, or {self.again}."
            ) from error
        header = self._header(data)
        if header["version"] != self.version:
            raise self.error(
                f"it has format version {header['version']!r}, and this promptnet reads {self.version}. "
                f"Use the promptnet that wrote it, or {self.again}."
            )
        texts = {name: value for name, value in header.items() if name not in ("version", "content_hash")}
        if hash_content(texts, tensors) != header.get("content_hash"):
            raise self.error(f"its content was altered since it was saved. Copy it again, or {self.again}.")
        return texts, tensors

    def _header(self, data: bytes) -> Texts:
        """Our JSON in the metadata of a header that safetensors has already accepted."""
        header_size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
        try:
            header = json.loads(metadata[self.key])
            header["version"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            noun = self.noun.removeprefix("a ").removeprefix("an ")
            raise self.error(
                f"it is a safetensors file, but no {noun}. Give the file that `{self.maker}` wrote."
            ) from error
        return header

    def _made(self, make: Callable[[Texts, Tensors], Made], texts: Texts, tensors: Tensors) -> Made:
        """The checks in `make` are for files that were made wrong, hash and all."""
        try:
            return make(texts, tensors)
        except self.error:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            again = self.again[0].upper() + self.again[1:]
            raise self.error(f"it is not laid out as {self.noun} ({error}). {again}.") from error


def hash_content(texts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the texts as canonical JSON, and each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)  # no copy
    return digest.hexdigest()
