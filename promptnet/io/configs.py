"""Configs of networks in diffusers layout, before they leave this machine."""

import json
from pathlib import Path

from promptnet.io.atomic import write_whole

_SOURCE = "_name_or_path"


def drop_sources(folder: str | Path) -> None:
    """Remove from the configs below a folder where their networks were loaded from.

    diffusers and transformers write it, and it is a path of this machine, often with somebody's name in it.

    Args:
        folder: of a network or of a whole pipeline.
    """
    for path in sorted(Path(folder).rglob("*.json")):
        config = json.loads(path.read_text("utf-8"))
        if isinstance(config, dict) and config.pop(_SOURCE, None) is not None:
            write_whole(path, json.dumps(config, indent=2, sort_keys=True) + "\n", public=True)
