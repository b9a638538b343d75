"""Web API methods that read conversations and users."""

from __future__ import annotations

from typing import Any

from bot.workspace.arguments import Arguments
from bot.workspace.errors import SlackError
from bot.workspace.methods import Services, method, the_channel
from bot.workspace.records import Message
from bot.workspace.wire import channel_json, message_json, user_json


def _page(services: Services, arguments: Arguments, messages: list[Message]) -> dict[str, Any]:
    """The part of `messages` that the call asks for: oldest, latest, limit, cursor (a count of those skipped)."""
    oldest, latest = arguments.optional("oldest"), arguments.optional("latest")
    inclusive = arguments.flag("inclusive")

    def inside(message: Message) -> bool:
        if inclusive and message.ts in (oldest, latest):
            return True
        return (oldest is None or float(message.ts) > float(oldest)) and (
            latest is None or float(message.ts) < float(latest)
        )

    try:
        wanted = [message for message in messages if inside(message)]
    except ValueError as error:
        raise SlackError("invalid_ts_oldest" if oldest else "invalid_ts_latest") from error
    cursor = arguments.optional("cursor")
    if cursor is not None and not cursor.isdigit():
        raise SlackError("invalid_cursor")
    start = int(cursor or 0)
    end = start + arguments.number("limit", default=100, most=1000)
    more = len(wanted) > end
    with_metadata = arguments.flag("include_all_metadata")
    return {
        "messages": [
            message_json(services.state, message, base_url=services.base_url, with_metadata=with_metadata)
            for message in wanted[start:end]
        ],
        "has_more": more,
        "response_metadata": {"next_cursor": str(end) if more else ""},
    }


@method("conversations.history")
def conversations_history(services: Services, arguments: Arguments) -> dict[str, Any]:
    """What stands in the channel itself, newest first."""
    channel = the_channel(services, arguments)
    return _page(services, arguments, services.state.roots(channel.id)[::-1]) | {"pin_count": 0}


@method("conversations.replies")
def conversations_replies(services: Services, arguments: Arguments) -> dict[str, Any]:
    """A thread, root first; `ts` names any message of it."""
    channel = the_channel(services, arguments)
    message = services.state.find_message(channel.id, arguments.required("ts"))
    if message is None or message.visible_to is not None:
        raise SlackError("thread_not_found")
    return _page(services, arguments, services.state.thread(channel.id, message.thread_ts or message.ts))


@method("conversations.info")
def conversations_info(services: Services, arguments: Arguments) -> dict[str, Any]:
    """One conversation; the bot need not be in it."""
    channel = services.state.find_channel(arguments.required("channel"))
    if channel is None:
        raise SlackError("channel_not_found")
    return {"channel": channel_json(channel)}


@method("conversations.open")
def conversations_open(services: Services, arguments: Arguments) -> dict[str, Any]:
    """The direct message with one person."""
    names = arguments.required("users").split(",")
    if len(names) != 1:
        raise SlackError("too_many_users" if len(names) > 8 else "method_not_supported_for_channel_type")  # noqa: PLR2004 - Slack's limit
    if names[0] not in services.state.users:
        raise SlackError("user_not_found")
    return {"channel": channel_json(services.state.open_direct_message(names[0]))}


@method("users.info")
def users_info(services: Services, arguments: Arguments) -> dict[str, Any]:
    """One user."""
    user = services.state.users.get(arguments.required("user"))
    if user is None:
        raise SlackError("user_not_found")
    return {"user": user_json(user)}
