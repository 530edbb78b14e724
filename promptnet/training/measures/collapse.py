"""Has a figure fallen from its best, beyond what noise does?"""

from __future__ import annotations

import math
from collections.abc import Sequence


def fall_from_best(history: Sequence[float], window: int) -> float:
    """The best of the last `window` values minus the last: at least 0, NaN where nothing is known.

    A last value that is not finite is an infinite fall from any that was.
    """
    recent = history[-window:]
    known = [value for value in recent if math.isfinite(value)]
    if not known:
        return math.nan
    return max(known) - recent[-1] if math.isfinite(recent[-1]) else math.inf
