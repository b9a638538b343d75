"""What goes wrong in a listener itself, before the desk has taken over."""

from __future__ import annotations

import logging
from typing import Any

from slack_bolt import App

_log = logging.getLogger(__name__)


def register(app: App) -> None:
    """Log it with what was delivered, tokens and texts left out."""

    def handle(error: Exception, body: dict[str, Any]) -> None:
        kind = body.get("command") or body.get("type") or "request"
        _log.error("A listener failed on %s.", kind, exc_info=error)

    app.error(handle)
