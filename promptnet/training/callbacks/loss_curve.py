"""The loss curve of a run as an image."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from promptnet.training.callbacks.metrics_file import values_of


def check_matplotlib() -> None:
    """Fail now rather than at the end of a training.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}: the curve beside the model card needs the extra, pip install 'promptnet[eval]', or curve: false"
        ) from error


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Exponential average over about `share` of the values, without a pull towards zero at its start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def loss_curve(entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Training and validation loss by step as PNG, None where no loss was logged.

    Args:
        entries: the lines of metrics.jsonl.
    """
    training, validation = values_of(entries, "train/loss"), values_of(entries, "val/loss")
    if not training and not validation:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, lw=0.8)
        axes.plot(steps, smoothed(losses), color="tab:blue", label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="tab:orange", label="validation, fixed noise")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("mean squared error")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
