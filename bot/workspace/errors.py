"""How Slack says no: `{"ok": false, "error": …}`. These go to programs, not to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class SlackError(Exception):
    """A Web API call that Slack would refuse.

    Args:
        error: Slack's own error code, such as `channel_not_found`.
        messages: What exactly is wrong, without the `[ERROR]` that Slack puts in front.
    """

    def __init__(self, error: str, messages: Sequence[str] = ()) -> None:
        super().__init__(f"{error}: {'; '.join(messages)}" if messages else error)
        self.error = error
        self.messages = tuple(messages)

    def body(self) -> dict[str, Any]:
        """The JSON object that the caller gets."""
        body: dict[str, Any] = {"ok": False, "error": self.error}
        if self.messages:
            body["errors"] = list(self.messages)
            body["response_metadata"] = {"messages": [f"[ERROR] {message}" for message in self.messages]}
        return body


def missing_argument(name: str) -> SlackError:
    """The refusal of a call that lacks a required argument."""
    return SlackError("invalid_arguments", [f"missing required field: {name}"])
