"""GET /v1/me/export: everything of a user's in one zip, written while it is sent; nothing is decrypted onto a disk."""

import json
import zipfile
from collections.abc import Iterator
from typing import Any

from promptnet.serve.consent import TEXTS
from promptnet.serve.database import CONSENTS, EDITS, IMAGES, JOBS, SUBJECTS
from promptnet.serve.keys import Caller
from promptnet.serve.service import Service
from promptnet.serve.store import Missing

_ENDINGS = {
    "subjects": "safetensors",
    "thumbnails": "png",
    "images": "png",
    "edits": "safetensors",
    "requests": "json",
    "results": "json",
}


class _Sink:
    """A file that cannot seek, whose content is taken out as it comes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def archive(service: Service, caller: Caller) -> Iterator[bytes]:
    """The parts of the zip, one file after the other."""
    sink: Any = _Sink()
    with zipfile.ZipFile(sink, "w") as zipped:
        for kind, ending in _ENDINGS.items():
            for name in service.store.names(caller.user, kind):
                try:
                    zipped.writestr(f"{kind}/{name}.{ending}", service.store.get(caller.user, kind, name))
                except Missing:  # deleted meanwhile
                    continue
                yield sink.taken()
        zipped.writestr("records.json", json.dumps(_rows(service, caller), indent=1))
    yield sink.taken()


def _rows(service: Service, caller: Caller) -> dict[str, Any]:
    tables = (SUBJECTS, IMAGES, EDITS, JOBS, CONSENTS)
    rows = {table.name: [dict(row) for row in service.records.all_owned(table, caller.user)] for table in tables}
    return rows | {"consent_texts": TEXTS}
