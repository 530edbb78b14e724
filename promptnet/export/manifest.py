"""The files of a folder with sizes and hashes, and which of them are no longer what was written."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_files(folder: Path, leave_out: str = "") -> dict[str, dict[str, Any]]:
    """Path below the folder -> {"bytes": size, "sha256": hash}.

    Args:
        folder: with anything in it.
        leave_out: name of the manifest itself.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in names.items()
        if name != leave_out
    }


def differing_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The files that are missing, cut or changed."""
    return [name for name, record in files.items() if not _is_as_written(folder / name, record)]


def _is_as_written(path: Path, record: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == record["bytes"] and _sha256(path) == record["sha256"]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
