"""What can go wrong between the bot and Slack, made to go wrong on demand. Thread-safe."""

from __future__ import annotations

import threading
from typing import Literal

from runner.reports import Record

FaultKind = Literal["rate_limited", "server_error", "dropped_request", "dropped_reply", "delayed"]
DisconnectKind = Literal["refresh", "warning", "close", "reset"]
"""How the bot's Socket Mode connections end, see `SocketHub.disconnect`."""


class Fault(Record):
    """Something that happens to the next calls of a method."""

    kind: FaultKind
    """`rate_limited` answers 429, `server_error` a 5xx, both without applying the call; `dropped_request` cuts the
    connection before applying it, `dropped_reply` after; `delayed` applies and answers late."""
    method: str = "*"
    """Web API method such as `chat.postMessage`; `*` for any."""
    times: int = 1
    """Calls that it happens to."""
    retry_after: int = 1
    """Seconds in the Retry-After header of a 429."""
    status: int = 503
    """HTTP status of a `server_error`."""
    delay_s: float = 0.0
    """Seconds that a `delayed` call waits before it is applied."""


class Faults:
    """The faults still to come, first in, first met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self._refused: frozenset[str] = frozenset()

    def inject(self, fault: Fault) -> None:
        """Let it happen to the next `fault.times` matching calls."""
        with self._lock:
            self._waiting.append(fault)

    def refuse_block(self, block_type: str) -> None:
        """Answer `invalid_blocks` to every message with a block of that type, as an older workspace does."""
        with self._lock:
            self._refused |= {block_type}

    @property
    def refused_blocks(self) -> frozenset[str]:
        """Block types that are refused now."""
        return self._refused

    def clear(self) -> None:
        """From now on nothing goes wrong."""
        with self._lock:
            self._waiting.clear()
            self._refused = frozenset()

    def take(self, method: str) -> Fault | None:
        """The fault that this call of `method` meets, counted down."""
        with self._lock:
            for index, fault in enumerate(self._waiting):
                if fault.method in ("*", method):
                    if fault.times > 1:
                        self._waiting[index] = fault.model_copy(update={"times": fault.times - 1})
                    else:
                        del self._waiting[index]
                    return fault
        return None
