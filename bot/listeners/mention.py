"""`@bot stop` and every other command by mention; inside a job's thread, `stop` and `status` mean that job."""

from __future__ import annotations

import re
from typing import Any

from slack_bolt import App, BoltContext
from slack_sdk import WebClient

from bot.delivery import DeliveryStore
from bot.desk import Desk, reply_by_api
from bot.service import Request
from runner.errors import UnavailableError


def register(app: App, desk: Desk, memory: DeliveryStore) -> None:
    """Listen for mentions; Bolt acknowledges events by itself before this is called."""

    def handle(event: dict[str, Any], body: dict[str, Any], context: BoltContext, client: WebClient) -> None:
        channel, thread_ts = str(event["channel"]), event.get("thread_ts")
        mention = re.compile(rf"<@{re.escape(context.bot_user_id or '')}(\|[^>]*)?>")
        text = mention.sub(" ", str(event["text"]), count=1)
        request = Request(
            user=str(event["user"]),
            channel=channel,
            request_id=str(body["event_id"]),
            job_id=_job_of(memory, channel, thread_ts),
        )
        desk.take(text, request, reply_by_api(client, request, thread_ts))

    app.event("app_mention")(handle)


def _job_of(memory: DeliveryStore, channel: str, thread_ts: str | None) -> str | None:
    if thread_ts is None:
        return None
    try:
        return memory.job_of_thread(channel, thread_ts)
    except UnavailableError:
        # The desk meets the same and tells it to whoever asked.
        return None
