"""`promptnet convert`: published encoders into this package's layout."""

from __future__ import annotations

from pathlib import Path


def convert(source: Path, out: Path) -> None:
    """Turn a published encoder (safetensors or torch pickle) into a folder that this package loads.

    Args:
        source: the published folder, with its config.json
        out: the folder to write; its parent must exist, it must not
    """
    raise NotImplementedError
