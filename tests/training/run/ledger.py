"""A ledger of the samples that training saw: proof that each came exactly once an epoch, also through crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.callbacks import Callback


class SampleLedger(Callback):
    """Appends what every batch held to `<folder>/rank-<r>.jsonl`, flushed batch by batch.

    A resumed run first notes how many batches its checkpoint has behind it: what stands after that many was lost with
    the process that did it, and `read_ledger` leaves it out.

    Args:
        folder: where the ledger is kept.
        fields: which entries of the batch to note; `sample` is the number of the sample in the stream.
    """

    def __init__(self, folder: str, fields: list[str] | None = None) -> None:
        self.folder, self.fields = Path(folder), fields or ["sample"]
        self._file: IO[str] | None = None
        self._batch = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this rank's file, and say where in the stream it goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / f"rank-{trainer.global_rank}.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._batch = trainer.global_step * trainer.accumulate_grad_batches
        self._append({"resumed_at": self._batch})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note one batch."""
        self._append({"batch": self._batch, **self.entry(outputs, batch)})
        self._batch += 1

    def entry(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """What to note of a batch."""
        return {field: torch.as_tensor(batch[field]).tolist() for field in self.fields}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def read_ledger(path: str | Path) -> list[dict[str, Any]]:
    """The entries of one rank's file in order of the batches, those left out that a resumed run did again.

    Raises:
        ValueError: a batch is missing, or stands in the wrong place.
    """
    kept: list[dict[str, Any]] = []
    for record in _records(Path(path)):
        if "resumed_at" in record:
            del kept[record["resumed_at"] :]
        elif record["batch"] == len(kept):
            kept.append(record)
        else:
            raise ValueError(f"{path}: batch {record['batch']} follows {len(kept)} batches")
    return kept


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a ledger; a process killed while it wrote one has left half of it, and the next went on behind it."""
    for line in path.read_text("utf-8").splitlines():
        start = max(line.rfind('{"batch"'), line.rfind('{"resumed_at"'))
        if start >= 0 and line.endswith("}"):
            yield json.loads(line[start:])
