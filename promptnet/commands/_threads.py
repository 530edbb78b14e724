"""How many threads a command computes with on a CPU.

Threads of one operation wait for each other, so beside other work two threads can take many times as long as one. A
command takes the cores that are free when it begins.
"""

import os
import sys


def free_cores(num_cores: int, load: float) -> int:
    """Return how many cores are left beside a load, at least one.

    Args:
        num_cores: that this process may use.
        load: how many processes wanted to run in the last minute.
    """
    return max(1, num_cores - round(load))


def choose_threads() -> int:
    """Set torch's threads to the free cores, and say on stderr where that is fewer than all.

    `OMP_NUM_THREADS` wins.

    Returns:
        the number of threads.
    """
    import torch

    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    threads = min(torch.get_num_threads(), free_cores(cores, load))
    if threads < torch.get_num_threads():
        print(f"computing with {threads} of {cores} CPU cores, as others are busy (OMP_NUM_THREADS)", file=sys.stderr)
        torch.set_num_threads(threads)
    return threads
