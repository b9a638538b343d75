"""`@bot stop` and every other command by mention; inside a job's thread, `stop` and `status` mean that job."""

from __future__ import annotations

import re
from typing import Any

from slack_bolt import App, BoltContext
from slack_sdk import WebClient

from bot.desk import Desk, reply_by_api
from bot.service import Request


def register(app: App, desk: Desk) -> None:
    """Listen for mentions; Bolt acknowledges events by itself before this is called."""

    def handle(event: dict[str, Any], body: dict[str, Any], context: BoltContext, client: WebClient) -> None:
        thread_ts = event.get("thread_ts")
        mention = re.compile(rf"<@{re.escape(context.bot_user_id or '')}(\|[^>]*)?>")
        text = mention.sub(" ", str(event["text"]), count=1)
        request = Request(user=str(event["user"]), channel=str(event["channel"]), request_id=str(body["event_id"]))
        desk.take(text, request, reply_by_api(client, request, thread_ts), thread_ts)

    app.event("app_mention")(handle)
