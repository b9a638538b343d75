"""The log of Web API calls that tests read: what was called, in which order, and how it ended."""

from __future__ import annotations

from typing import Any

from bot.workspace.records import Call

KEPT_CALLS = 10_000


class CallLog:
    """The latest calls, oldest first."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._order = 0

    def begin(self, method: str, arguments: dict[str, Any], fault: str | None) -> int:
        """Note the arrival of a call and return its number."""
        self._order += 1
        self._calls[self._order] = Call(
            order=self._order,
            method=method,
            arguments={name: value for name, value in arguments.items() if name != "token"},
            outcome="in_progress",
            fault=fault,
        )
        self._calls.pop(self._order - KEPT_CALLS, None)
        return self._order

    def end(self, order: int, outcome: str, ts: str | None = None) -> None:
        """Note how it ended."""
        if order in self._calls:
            self._calls[order] = self._calls[order].model_copy(update={"outcome": outcome, "ts": ts})

    def calls(self, method: str | None = None, after: int = 0) -> list[Call]:
        """Calls of one method or of all, those numbered above `after`."""
        return [call for call in self._calls.values() if call.order > after and method in (None, call.method)]
