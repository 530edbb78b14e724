"""Peak memory of a call, for the benchmarks."""

import gc
from collections.abc import Callable
from typing import Any

import torch


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Most memory during a call, beyond what lies there before it."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    results: Any = profile.profiler.kineto_results
    waiting, sizes = list(results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))  # negative when it is given back
    now = most = 0
    for _, size in sorted(sizes, key=lambda each: each[0]):
        now += size
        most = max(most, now)
    return most
