"""What Slack sends to the bot when somebody types a command, clicks a button or mentions it. Pure."""

from __future__ import annotations

import time
from typing import Any

from bot.workspace.records import Channel, Message, User
from bot.workspace.state import APP_ID, BOT_USER, TEAM_DOMAIN, TEAM_ID, new_id

VERIFICATION_TOKEN = "local"  # noqa: S105 - a field that Slack has deprecated, no secret


def slash_command(line: str, user: User, channel: Channel, *, response_url: str, trigger_id: str) -> dict[str, Any]:
    """Payload of a slash command, every value a string as in Slack's form."""
    command, _, text = line.strip().partition(" ")
    return {
        "token": VERIFICATION_TOKEN,
        "team_id": TEAM_ID,
        "team_domain": TEAM_DOMAIN,
        "channel_id": channel.id,
        "channel_name": "directmessage" if channel.is_im else channel.name,
        "user_id": user.id,
        "user_name": user.name,
        "command": command,
        "text": text.strip(),
        "api_app_id": APP_ID,
        "is_enterprise_install": "false",
        "response_url": response_url,
        "trigger_id": trigger_id,
    }


def block_actions(
    element: dict[str, Any],
    block_id: str,
    user: User,
    channel: Channel,
    message: Message,
    *,
    shown: dict[str, Any],
    response_url: str,
    trigger_id: str,
    action_ts: str,
) -> dict[str, Any]:
    """Payload of a click on `element`; `shown` is the message in Slack's JSON."""
    ephemeral = message.visible_to is not None
    container = {"type": "message", "message_ts": message.ts, "channel_id": channel.id, "is_ephemeral": ephemeral}
    if message.thread_ts is not None:
        container["thread_ts"] = message.thread_ts
    taken = ("type", "action_id", "text", "value", "style", "url")
    action = {name: element[name] for name in taken if name in element}
    payload: dict[str, Any] = {
        "type": "block_actions",
        "user": {"id": user.id, "username": user.name, "name": user.name, "team_id": TEAM_ID},
        "api_app_id": APP_ID,
        "token": VERIFICATION_TOKEN,
        "container": container,
        "trigger_id": trigger_id,
        "team": {"id": TEAM_ID, "domain": TEAM_DOMAIN},
        "enterprise": None,
        "is_enterprise_install": False,
        "channel": {"id": channel.id, "name": "directmessage" if channel.is_im else channel.name},
        "state": {"values": {}},
        "response_url": response_url,
        "actions": [action | {"block_id": block_id, "action_ts": action_ts}],
    }
    if not ephemeral:
        payload["message"] = shown
    return payload


def app_mention(message: Message) -> dict[str, Any]:
    """Events API payload of a message that mentions the bot."""
    event = {
        "type": "app_mention",
        "user": message.user,
        "text": message.text,
        "ts": message.ts,
        "team": TEAM_ID,
        "channel": message.channel,
        "event_ts": message.ts,
    }
    if message.thread_ts is not None:
        event["thread_ts"] = message.thread_ts
    return {
        "token": VERIFICATION_TOKEN,
        "team_id": TEAM_ID,
        "api_app_id": APP_ID,
        "event": event,
        "type": "event_callback",
        "event_id": new_id("Ev"),
        "event_time": int(time.time()),
        "authorizations": [
            {
                "enterprise_id": None,
                "team_id": TEAM_ID,
                "user_id": BOT_USER.id,
                "is_bot": True,
                "is_enterprise_install": False,
            }
        ],
        "is_ext_shared_channel": False,
        "event_context": "local",
    }
