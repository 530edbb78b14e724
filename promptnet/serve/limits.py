"""How often a key may call: a moving window of a minute for each."""

import math
import time

from promptnet.serve.keys import Caller


class RateLimits:
    """Counts of this process, which is the one that answers HTTP."""

    def __init__(self) -> None:
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def seconds_to_wait(self, caller: Caller) -> int:
        """Count a request; 0 if it may pass, else the seconds after which another may."""
        from limits import RateLimitItemPerMinute

        item = RateLimitItemPerMinute(caller.limits.requests_per_minute)
        if self._limiter.hit(item, caller.key):
            return 0
        return max(1, math.ceil(self._limiter.get_window_stats(item, caller.key).reset_time - time.time()))
