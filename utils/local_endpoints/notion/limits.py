"""The rate limit: a token bucket, about three requests a second on average, with bursts.

Source: https://developers.notion.com/reference/request-limits
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

NOTION_PER_SECOND = 3.0
NOTION_BURST = 10


@dataclass(slots=True)
class RateLimit:
    """A token bucket.

    Attributes:
        per_second: Requests a second in the long run; more than 0.
        burst: Requests that may come at once; at least 1.
        clock: Seconds that never run backwards.
    """

    per_second: float = NOTION_PER_SECOND
    burst: int = NOTION_BURST
    clock: Callable[[], float] = time.monotonic
    _tokens: float = field(init=False)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        """Start with a full bucket."""
        if not (self.per_second > 0 and math.isfinite(self.per_second) and self.burst >= 1):
            raise ValueError("per_second must be a number above 0 and burst at least 1")
        self._tokens = float(self.burst)
        self._last = self.clock()

    def take(self) -> int:
        """Count one request; return 0 if it may pass, else the whole seconds to wait."""
        now = self.clock()
        self._tokens = min(self.burst, self._tokens + (now - self._last) * self.per_second)
        self._last = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        return max(1, math.ceil((1 - self._tokens) / self.per_second))
