"""Read and write the safetensors files of exports; they are as private as the face in them."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from promptnet.export.errors import ExportError
from promptnet.io.atomic import write_whole


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file whole, for its owner alone; an old one is replaced."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(plain, metadata=dict(metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Raises:
        ExportError: it is no safetensors file or was cut short; then names the first tensor that is not all there.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        lost = first_lost_tensor(data)
        where = f" It ends before {lost}." if lost else ""
        raise ExportError(
            f"'{path}' is no safetensors file, or was cut short ({error}).{where} Export it again, or copy it again."
        ) from error
    return tensors, _header(data).get("__metadata__") or {}


def first_lost_tensor(data: bytes) -> str:
    """The first tensor by its place in the file that a file cut short does not hold whole; "" if none is known."""
    header, start = _header(data), 8 + int.from_bytes(data[:8], "little")
    ends = [(entry["data_offsets"][1], name) for name, entry in header.items() if name != "__metadata__"]
    return next((name for end, name in sorted(ends) if start + end > len(data)), "")


def _header(data: bytes) -> dict:
    size = int.from_bytes(data[:8], "little")
    try:
        return json.loads(data[8 : 8 + size])
    except ValueError:
        return {}
