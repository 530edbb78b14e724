"""The papers' figures as published, which stand beside ours."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any


@cache
def published() -> dict[str, Any]:
    """Return all published figures, by table."""
    return json.loads((resources.files("promptnet.evaluation.papers") / "published.json").read_text("utf-8"))


def published_clip(row: str) -> Mapping[str, float]:
    """Return a row of ProFusion's table: CLIP model to similarity; empty for a row that it has not."""
    return published()["profusion"]["clip"].get(row, {})


def published_sizes(model: str, scale: str, row: str) -> Mapping[str, float]:
    """Return FID and KID of ScaleCrafter's table; empty for what it has not."""
    return published()["sizes"]["models"].get(model, {}).get(scale, {}).get(row, {})
