"""What a part of the GPU run found, written as it goes."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Notes:
    """What a part found.

    Args:
        size: "true" or "toy".
        device: where.
        path: of the file.
    """

    size: str
    device: str
    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_toy(self) -> bool:
        return self.size == "toy"

    def add(self, what: str, value: float | int | str, unit: str = "") -> None:
        rounded = float(f"{value:.4g}") if isinstance(value, float) else value
        self.rows.append({"what": what, "value": rounded, "unit": unit})
        self.path.write_text(json.dumps(self.rows))
        print(what, rounded, unit, flush=True)

    def now_s(self) -> float:
        """Seconds, with the device's work done."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, call: Callable[[], Any], times: int = 1) -> float:
        """The median of some calls; the first one, before, warms up."""
        call()
        found = []
        for _ in range(1 if self.is_toy else times):
            start_s = self.now_s()
            call()
            found.append(self.now_s() - start_s)
        return statistics.median(found)

    def clear_memory(self) -> None:
        """Give back what is free, so that the next peak is of what follows alone."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def add_peak(self, what: str) -> None:
        """The most memory that torch held, on a GPU."""
        if self.device.startswith("cuda"):
            self.add(what, torch.cuda.max_memory_reserved() / 2**30, "GiB")
        self.clear_memory()
