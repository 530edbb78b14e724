"""The progress bar."""

from typing import Any

shown: list[tuple[int, int]] = []


class ProgressBar:
    def __init__(self, total: int, node_id: Any = None) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        shown.append((value, self.total if total is None else total))
