"""metrics.jsonl: every logged scalar of a run, one JSON object a line, appended and never rewritten but to resume.

A line: {"step": optimiser steps done, "wall_time_s": seconds since 1970, and the scalars by name}. Numbers that are not
finite are written as the strings "nan", "inf" and "-inf", which JSON allows and `float` reads back.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def metric_line(step: int, scalars: Mapping[str, float], wall_time_s: float | None = None) -> str:
    """One line of the file, its end included."""
    now_s = time.time() if wall_time_s is None else wall_time_s
    entry: dict[str, Any] = {"step": step, "wall_time_s": round(now_s, 3)}
    entry |= {name: _spelled(value) for name, value in scalars.items()}
    return json.dumps(entry, allow_nan=False) + "\n"


def append_metrics(path: Path, step: int, scalars: Mapping[str, float]) -> None:
    """Add one line, in one write: a process killed meanwhile leaves a torn last line at worst."""
    with path.open("a", encoding="utf-8") as file:
        file.write(metric_line(step, scalars))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The file's lines as dictionaries, numbers as numbers; torn lines are left out, a missing file is empty."""
    if not path.is_file():
        return []
    entries = (_parsed(line) for line in path.read_text("utf-8").splitlines())
    return [{name: _number(value) for name, value in entry.items()} for entry in entries if entry is not None]


def cut_metrics(path: Path, last_step: int) -> int:
    """Drop torn lines and lines of steps beyond `last_step`, whole or not at all, and return how many were dropped.

    What a run logged after its last checkpoint it will log again when it goes on from there.
    """
    if not path.is_file():
        return 0
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _is_kept(line, last_step)]
    if len(kept) < len(lines):
        replace_file(path, "".join(kept).encode())
    return len(lines) - len(kept)


def values_of(entries: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of one scalar, in the file's order."""
    return [(int(entry["step"]), float(entry[name])) for entry in entries if name in entry]


def replace_file(path: Path, data: bytes) -> None:
    """Write beside the final name, flush to the disk, rename: a file is whole or as it was."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_kept(line: str, last_step: int) -> bool:
    entry = _parsed(line) if line.endswith("\n") else None
    return entry is not None and entry["step"] <= last_step


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def _spelled(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
