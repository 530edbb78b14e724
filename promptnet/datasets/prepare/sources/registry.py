"""Which kind of source a name on the command line means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from promptnet.datasets.prepare.sources.base import Columns, Source, printable

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def open_sources(names: Sequence[str], columns: Columns) -> list[Source]:
    """A source for each name: a folder of images, tar shards or a folder of them, a data set saved or on the Hub.

    Raises:
        ValueError: a name that is none of these or comes twice, or options that do not go with it.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"a source is named twice: {', '.join(map(printable, names))}")
    several = len(names) > 1
    return [_opened(name, columns, prefix=f"{printable(name)}/" if several else "") for name in names]


def _opened(name: str, columns: Columns, prefix: str) -> Source:
    from promptnet.datasets.prepare.sources.folder import FolderSource
    from promptnet.datasets.prepare.sources.hub import HubSource, is_saved_data_set
    from promptnet.datasets.prepare.sources.tar import ShardSource, find_shards

    path = Path(name)
    if path.is_dir() and is_saved_data_set(path):
        return HubSource.opened(name, columns, prefix)
    if path.exists() and (shards := find_shards(path)):
        return ShardSource(shards, columns, prefix)
    if path.is_dir():
        return FolderSource(path, columns, prefix)
    if path.exists():
        raise ValueError(f"source '{printable(name)}' is a file: give a folder, .tar shards, or a data set")
    if _HUB_ID.fullmatch(name) and not name.endswith((".tar", ".gz", ".tgz")):
        return HubSource.opened(name, columns, prefix)
    raise ValueError(f"source '{printable(name)}' does not exist: check the path")
