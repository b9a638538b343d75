"""The Stop button on a job's root message: slash commands cannot be typed inside threads."""

from __future__ import annotations

from typing import Any

from slack_bolt import Ack, App, Respond
from slack_sdk import WebClient

from bot.desk import Desk, reply_by_response_url
from bot.render.plan import STOP_ACTION
from bot.service import Request


def register(app: App, desk: Desk) -> None:
    """Listen for presses; Slack has asked for confirmation before they get here."""

    def handle(ack: Ack, body: dict[str, Any], action: dict[str, Any], respond: Respond, client: WebClient) -> None:
        ack()
        request = Request(
            user=str(body["user"]["id"]),
            channel=str(body["channel"]["id"]),
            request_id=str(body["trigger_id"]),
            job_id=str(action["value"]),
        )
        desk.take("stop", request, reply_by_response_url(respond, client, request))

    app.action(STOP_ACTION)(handle)
