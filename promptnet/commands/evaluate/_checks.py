"""What the commands of `promptnet evaluate` check alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from promptnet.commands._checks import check_choices, check_counts, check_seed
from promptnet.commands._loading import check_model
from promptnet.io.atomic import check_folder


def checked(base: str, device: str, seed: int, folders: Iterable[Path | None], **counts: int | None) -> str:
    """Check what evaluations have in common; return the base model's folder.

    Raises:
        OSError: the base model does not exist.
        ValueError: a folder cannot be made, a count is below 1, or device or seed cannot be.
    """
    for folder in folders:
        if folder is not None:
            check_folder(folder)
    check_counts(1, **counts)
    check_seed(seed)
    return check_model(base, device).name


def check_frame(frame: str) -> None:
    from promptnet.evaluation.harness.tasks import FRAMES

    check_choices("frame", [frame], list(FRAMES))


def check_methods(methods: list[str] | None) -> None:
    from promptnet.evaluation.harness.methods import METHODS

    check_choices("methods", methods, list(METHODS))
