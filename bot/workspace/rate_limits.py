"""Slack's rate limits, where a test or an operator switches them on.

Source: docs.slack.dev/apis/web-api/rate-limits: `chat.postMessage` about one a second and channel, the others by tier,
per method and workspace.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

TIER_CALLS = {
    "chat.update": 50,
    "chat.delete": 50,
    "chat.postEphemeral": 100,
    "conversations.history": 50,
    "conversations.replies": 50,
    "conversations.info": 50,
    "conversations.open": 50,
    "users.info": 100,
    "reactions.add": 50,
    "views.open": 100,
    "views.update": 100,
    "views.publish": 100,
}
"""Calls a minute."""


class RateLimits:
    """Counts calls in sliding windows; off until switched on.

    Args:
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled = False
        self._clock = clock
        self._windows: dict[str, deque[float]] = {}

    def wait_before(self, method: str, channel: str) -> int:
        """Whole seconds to wait before this call, 0 when it may go on (and counts)."""
        if not self.enabled:
            return 0
        if method == "chat.postMessage":
            return self._take(f"{method} {channel}", limit=1, seconds=1.0)
        if method in TIER_CALLS:
            return self._take(method, limit=TIER_CALLS[method], seconds=60.0)
        return 0

    def _take(self, window: str, *, limit: int, seconds: float) -> int:
        now = self._clock()
        calls = self._windows.setdefault(window, deque())
        while calls and now - calls[0] >= seconds:
            calls.popleft()
        if len(calls) >= limit:
            return max(1, math.ceil(calls[0] + seconds - now))
        calls.append(now)
        return 0
