"""The slash command `/qlora`."""

from __future__ import annotations

from typing import Any

from slack_bolt import Ack, App, Respond
from slack_sdk import WebClient

from bot.desk import Desk, reply_by_response_url
from bot.service import Request

COMMAND = "/qlora"


def register(app: App, desk: Desk) -> None:
    """Listen for the command."""

    def handle(ack: Ack, command: dict[str, Any], respond: Respond, client: WebClient) -> None:
        ack()
        # One trigger id for one typed line, however often it is delivered.
        request = Request(
            user=str(command["user_id"]), channel=str(command["channel_id"]), request_id=str(command["trigger_id"])
        )
        desk.take(str(command.get("text") or ""), request, reply_by_response_url(respond, client, request))

    app.command(COMMAND)(handle)
