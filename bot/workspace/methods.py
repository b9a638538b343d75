"""The Web API's table of methods, and those about messages: `auth.test`, `chat.*`, `reactions.add`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bot.workspace.arguments import Arguments
from bot.workspace.blocks import check_blocks
from bot.workspace.errors import SlackError, missing_argument
from bot.workspace.faults import Faults
from bot.workspace.interactions import Interactions, with_ids
from bot.workspace.records import Channel, Message
from bot.workspace.sockets import SocketHub
from bot.workspace.state import APP_ID, BOT_ID, BOT_USER, TEAM_DOMAIN, TEAM_ID, TEAM_NAME, WorkspaceState
from bot.workspace.wire import message_json

TEXT_CHARACTERS = 40_000
METADATA_CHARACTERS = 8_000
"""Of the JSON text. Not documented to the letter; Slack answers `metadata_too_large` somewhere near."""


@dataclass(slots=True)
class Services:
    """What the methods work on."""

    state: WorkspaceState
    hub: SocketHub
    interactions: Interactions
    faults: Faults
    base_url: str
    """Address of the workspace, ending in a slash."""
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Open modals by view id, and each person's App Home by user id."""


Function = Callable[[Services, Arguments], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the table."""

    function: Function
    caller: Literal["bot", "app"]
    """Whose token it takes: the bot's or the app's."""


METHODS: dict[str, Method] = {}


def method(name: str, caller: Literal["bot", "app"] = "bot") -> Callable[[Function], Function]:
    """Enter a function in the table."""

    def enter(function: Function) -> Function:
        METHODS[name] = Method(function, caller)
        return function

    return enter


# --- what several methods need ---------------------------------------------------------------------------------------


def the_channel(services: Services, arguments: Arguments, name: str = "channel") -> Channel:
    """The channel that a call names, where the bot is a member.

    Raises:
        SlackError: `channel_not_found` or `not_in_channel`.
    """
    wanted = arguments.required(name)
    channel = services.state.find_channel(wanted)
    if channel is None and wanted in services.state.users:
        channel = services.state.open_direct_message(wanted)
    if channel is None:
        raise SlackError("channel_not_found")
    if BOT_USER.id not in channel.members:
        raise SlackError("not_in_channel")
    return channel


def thread_root(state: WorkspaceState, channel: str, thread_ts: str | None) -> str | None:
    """The top-level message that a new reply belongs to: the one named, or the parent of the reply named.

    Raises:
        SlackError: `thread_not_found`.
    """
    if thread_ts is None:
        return None
    parent = state.find_message(channel, thread_ts)
    if parent is None or parent.visible_to is not None:
        raise SlackError("thread_not_found")
    return parent.thread_ts or parent.ts


def checked_content(faults: Faults, arguments: Arguments) -> dict[str, Any]:
    """The content fields that a message call carries, checked; only those it carries."""
    content: dict[str, Any] = {}
    markdown = arguments.optional("markdown_text")
    if "text" in arguments:
        content["text"] = str(arguments.values["text"])
    blocks = arguments.array("blocks")
    if markdown is not None:
        if blocks is not None or "text" in arguments:
            raise SlackError("markdown_text_conflict")
        content["text"], blocks = markdown, [{"type": "markdown", "text": markdown}]
    if blocks is not None:
        check_blocks(blocks, refused=faults.refused_blocks)
        content["blocks"] = with_ids(blocks)
    attachments = arguments.array("attachments")
    if attachments is not None:
        content["attachments"] = tuple(attachments)
    return content


def has_content(content: dict[str, Any]) -> bool:
    """Whether there is anything to show."""
    return bool(content.get("text", "").strip() or content.get("blocks") or content.get("attachments"))


def _checked_metadata(arguments: Arguments) -> dict[str, Any]:
    metadata = arguments.values.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise SlackError("invalid_metadata_format")
    event_type, payload = metadata.get("event_type"), metadata.get("event_payload")
    if not isinstance(event_type, str) or not event_type or not isinstance(payload, dict):
        raise SlackError("invalid_metadata_schema", ["event_type and event_payload are required"])
    if len(str(metadata)) > METADATA_CHARACTERS:
        raise SlackError("metadata_too_large")
    return {"metadata": {"event_type": event_type, "event_payload": payload}}


def _own_message(services: Services, arguments: Arguments, refusal: str) -> Message:
    channel = the_channel(services, arguments)
    message = services.state.find_message(channel.id, arguments.required("ts"))
    if message is None or message.visible_to is not None:
        raise SlackError("message_not_found")
    if message.user != BOT_USER.id:
        raise SlackError(refusal)
    return message


# --- the methods -----------------------------------------------------------------------------------------------------


@method("api.test")
def api_test(_services: Services, arguments: Arguments) -> dict[str, Any]:
    """Answers; checks the token."""
    return {"args": arguments.values}


@method("auth.test")
def auth_test(services: Services, _arguments: Arguments) -> dict[str, Any]:
    """Who the bot is."""
    return {
        "url": services.base_url,
        "team": TEAM_NAME,
        "team_id": TEAM_ID,
        "user": BOT_USER.name,
        "user_id": BOT_USER.id,
        "bot_id": BOT_ID,
        "app_id": APP_ID,
        "team_domain": TEAM_DOMAIN,
        "is_enterprise_install": False,
    }


@method("apps.connections.open", caller="app")
def apps_connections_open(services: Services, _arguments: Arguments) -> dict[str, Any]:
    """A WebSocket address that works once."""
    return {"url": services.hub.new_address()}


@method("chat.postMessage")
def chat_post_message(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Post in a channel or a thread; text over the limit is cut, as Slack does."""
    channel = the_channel(services, arguments)
    content = checked_content(services.faults, arguments)
    if not has_content(content):
        raise SlackError("no_text")
    content["text"] = content.get("text", "")[:TEXT_CHARACTERS]
    root = thread_root(services.state, channel.id, arguments.optional("thread_ts"))
    message = services.state.post(
        channel.id,
        BOT_USER.id,
        **content,
        **_checked_metadata(arguments),
        thread_ts=root,
        broadcast=root is not None and arguments.flag("reply_broadcast"),
    )
    shown = message_json(services.state, message, base_url=services.base_url, with_metadata=True)
    return {"channel": channel.id, "ts": message.ts, "message": shown}


@method("chat.postEphemeral")
def chat_post_ephemeral(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Show something to one member of a channel."""
    channel = the_channel(services, arguments)
    user = arguments.required("user")
    if user not in channel.members:
        raise SlackError("user_not_in_channel")
    content = checked_content(services.faults, arguments)
    if not has_content(content):
        raise SlackError("no_text")
    if len(content.get("text", "")) > TEXT_CHARACTERS:
        raise SlackError("msg_too_long")
    root = thread_root(services.state, channel.id, arguments.optional("thread_ts"))
    message = services.state.post(channel.id, BOT_USER.id, **content, thread_ts=root, visible_to=user)
    return {"message_ts": message.ts}


@method("chat.update")
def chat_update(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Replace an own message's content. Text without blocks removes the blocks; metadata stays unless given."""
    message = _own_message(services, arguments, "cant_update_message")
    content = checked_content(services.faults, arguments)
    metadata = _checked_metadata(arguments)
    if not content and not metadata:
        raise SlackError("no_text")
    if content:
        if len(content.get("text", "")) > TEXT_CHARACTERS:
            raise SlackError("msg_too_long")
        if "text" in content:
            content.setdefault("blocks", ())
        merged = {"text": message.text, "blocks": message.blocks, "attachments": message.attachments} | content
        if not has_content(merged):
            raise SlackError("no_text")
    changed = services.state.edit(message, **content, **metadata)
    shown = message_json(services.state, changed, base_url=services.base_url, with_metadata=True)
    return {"channel": changed.channel, "ts": changed.ts, "text": changed.text, "message": shown}


@method("chat.delete")
def chat_delete(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Delete an own message; one with replies leaves a tombstone that keeps the thread together."""
    message = _own_message(services, arguments, "cant_delete_message")
    if message.is_root and len(services.state.thread(message.channel, message.ts)) > 1:
        services.state.edit(
            message, edited=False, text="This message was deleted.", blocks=(), attachments=(), metadata=None, files=()
        )
    else:
        services.state.edit(message, edited=False, deleted=True)
    return {"channel": message.channel, "ts": message.ts}


@method("chat.getPermalink")
def chat_get_permalink(services: Services, arguments: Arguments) -> dict[str, Any]:
    """The address of a message."""
    channel = the_channel(services, arguments)
    message = services.state.find_message(channel.id, arguments.required("message_ts"))
    if message is None:
        raise SlackError("message_not_found")
    link = f"{services.base_url}archives/{channel.id}/p{message.ts.replace('.', '')}"
    if message.thread_ts is not None:
        link += f"?thread_ts={message.thread_ts}&cid={channel.id}"
    return {"channel": channel.id, "permalink": link}


@method("reactions.add")
def reactions_add(services: Services, arguments: Arguments) -> dict[str, Any]:
    """Put an emoji on a message, once."""
    name = arguments.required("name")
    if "timestamp" not in arguments:
        raise missing_argument("timestamp")
    channel = the_channel(services, arguments)
    message = services.state.find_message(channel.id, arguments.required("timestamp"))
    if message is None:
        raise SlackError("message_not_found")
    if not name.replace("_", "").replace("-", "").replace("+", "").isalnum():
        raise SlackError("invalid_name")
    users = message.reactions.get(name, ())
    if BOT_USER.id in users:
        raise SlackError("already_reacted")
    services.state.edit(message, edited=False, reactions={**message.reactions, name: (*users, BOT_USER.id)})
    return {}
