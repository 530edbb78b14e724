"""Weights of other people's networks, read without running any code that they bring."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "save_file({n: t.contiguous() for n, t in torch.jit.load(sys.argv[1], 'cpu').state_dict().items()}, sys.argv[2])"
)
"""Makes a safetensors file of TorchScript. Loading TorchScript runs its code, so that we leave it to the user."""


def check_weights(path: Path, what: str) -> None:
    """Check that a file of weights is there, and of a kind that holds no code.

    Args:
        path: of the file.
        what: whose weights, for messages.

    Raises:
        ValueError: there is no such file, or it is TorchScript.
    """
    if not path.is_file():
        raise ValueError(f"there are no weights of {what} at '{path}': name a file of yours; nothing is downloaded")
    if is_torchscript(path):
        raise ValueError(
            f"'{path}' is TorchScript, which holds code that loading runs: if you trust it, make a safetensors file of "
            f"it with python -c \"{CONVERT}\" '{path}' '{path.with_suffix('.safetensors')}'"
        )


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip file that holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file, or from a torch file that holds nothing else.

    Args:
        path: of the file; "state_dict" inside a torch file is looked into.
        what: whose weights, for messages.

    Raises:
        ValueError: there is no such file, it is TorchScript, broken, or holds more than tensors.
    """
    check_weights(path, what)
    try:
        found = _read(path)
    except Exception as error:  # safetensors, pickle and torch each have errors of their own
        raise ValueError(
            f"the weights of {what} in '{path}' cannot be read ({_short(error)}): give a .safetensors file, or a torch "
            "file of tensors alone"
        ) from error
    inner = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict):
        raise ValueError(f"'{path}' holds a {type(inner).__name__} in place of named tensors of {what}")
    return inner


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
