"""The Slack app's manifest: what an operator pastes at api.slack.com/apps, Create New App, From a manifest. Pure."""

from __future__ import annotations

import json
from typing import Any

from bot.listeners.command import COMMAND

BOT_SCOPES = {
    "app_mentions:read": "`@bot stop` inside a job's thread",
    "channels:history": "find an uncertain post again, in public channels",
    "chat:write": "threads and answers",
    "commands": "/qlora",
    "groups:history": "find an uncertain post again, in private channels",
}
"""Scope to what it is needed for.

`chat:write.public` is left out on purpose: a bot outside a channel could post there but not read back what it posted,
so an uncertain post could never be settled. It has to be invited instead, and says so.
"""


def build_manifest() -> dict[str, Any]:
    """The manifest as Slack's schema wants it."""
    return {
        "display_information": {
            "name": "QLoRA",
            "description": "Fine-tunes models on your own GPU hosts, one thread a job.",
        },
        "features": {
            "bot_user": {"display_name": "qlora", "always_online": True},
            "slash_commands": [
                {
                    "command": COMMAND,
                    "description": "Start, stop and watch fine-tuning jobs",
                    "usage_hint": "start PROJECT | stop JOB | status | jobs | projects | versions | help",
                    "should_escape": False,
                }
            ],
        },
        "oauth_config": {"scopes": {"bot": sorted(BOT_SCOPES)}},
        "settings": {
            "event_subscriptions": {"bot_events": ["app_mention"]},
            "interactivity": {"is_enabled": True},
            "org_deploy_enabled": False,
            "socket_mode_enabled": True,
            "token_rotation_enabled": False,
        },
    }


def format_manifest() -> str:
    """The manifest as JSON, which Slack takes as well as YAML."""
    return json.dumps(build_manifest(), indent=2)
