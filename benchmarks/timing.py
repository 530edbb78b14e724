"""Seconds of a call and ratios of paired calls, for the benchmarks."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def now_s(device: str = "cpu") -> float:
    """Read the clock: on a CPU the process's own, which other work hardly moves; else with the device's work done."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(call: Callable[[], Any], device: str = "cpu") -> float:
    """Time one call."""
    start_s = now_s(device)
    call()
    return now_s(device) - start_s


def paired_ratios(one: Callable[[], float], other: Callable[[], float], pairs: int) -> list[float]:
    """Return one's seconds over the other's, pair by pair.

    Args:
        one: makes a call and returns its seconds.
        other: likewise; begins every second pair, so that both meet the same load of the machine.
        pairs: how many; a pair before them warms up.
    """
    found = []
    for number in range(pairs + 1):
        times: dict[int, float] = {}
        for which in (0, 1) if number % 2 else (1, 0):
            times[which] = (one, other)[which]()
        found.append(times[0] / times[1])
    return found[1:]


def spread(ratios: Sequence[float]) -> str:
    """Say the median of ratios and how far they lie apart."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs)"
