"""Slack's JSON for what the workspace holds. Pure."""

from __future__ import annotations

import mimetypes
from typing import Any
from urllib.parse import quote

from bot.workspace.records import Channel, Message, StoredFile, User
from bot.workspace.state import APP_ID, BOT_ID, BOT_USER, TEAM_ID, WorkspaceState


def message_json(
    state: WorkspaceState, message: Message, *, base_url: str, with_metadata: bool = False
) -> dict[str, Any]:
    """A message as `conversations.*`, `chat.*` and interaction payloads show it.

    Args:
        state: To count a thread's replies and name files.
        message: What to show.
        base_url: Address of the workspace, for links to files.
        with_metadata: Whether the caller asked for `include_all_metadata`.
    """
    shown: dict[str, Any] = {
        "type": "message",
        "user": message.user,
        "text": message.text,
        "ts": message.ts,
        "team": TEAM_ID,
    }
    if message.user == BOT_USER.id:
        shown |= {"bot_id": BOT_ID, "app_id": APP_ID, "bot_profile": {"id": BOT_ID, "app_id": APP_ID, "name": "QLoRA"}}
    if message.blocks:
        shown["blocks"] = list(message.blocks)
    if message.attachments:
        shown["attachments"] = list(message.attachments)
    if message.files:
        shown["files"] = [file_json(state.files[file_id], base_url) for file_id in message.files]
        shown["subtype"] = "file_share"
    if message.edited_ts is not None:
        shown["edited"] = {"user": message.user, "ts": message.edited_ts}
    if message.reactions:
        shown["reactions"] = [
            {"name": name, "users": list(users), "count": len(users)} for name, users in message.reactions.items()
        ]
    if with_metadata and message.metadata is not None:
        shown["metadata"] = message.metadata
    if message.broadcast:
        shown["subtype"] = "thread_broadcast"
    shown |= _thread_fields(state, message)
    return shown


def _thread_fields(state: WorkspaceState, message: Message) -> dict[str, Any]:
    if message.thread_ts is not None:
        root = state.find_message(message.channel, message.thread_ts)
        return {"thread_ts": message.thread_ts} | ({"parent_user_id": root.user} if root else {})
    replies = state.thread(message.channel, message.ts)[1:]
    if not replies:
        return {}
    users = list(dict.fromkeys(reply.user for reply in replies))
    return {
        "thread_ts": message.ts,
        "reply_count": len(replies),
        "reply_users_count": len(users),
        "reply_users": users,
        "latest_reply": replies[-1].ts,
    }


def channel_json(channel: Channel) -> dict[str, Any]:
    """A conversation as `conversations.info` shows it."""
    shown: dict[str, Any] = {"id": channel.id, "is_im": channel.is_im, "is_channel": not channel.is_im}
    if channel.is_im:
        return shown | {"user": channel.name, "is_open": True}
    member = BOT_USER.id in channel.members
    return shown | {"name": channel.name, "is_member": member, "is_archived": False, "is_private": False}


def user_json(user: User) -> dict[str, Any]:
    """A user as `users.info` shows it."""
    return {
        "id": user.id,
        "team_id": TEAM_ID,
        "name": user.name,
        "real_name": user.real_name,
        "deleted": False,
        "is_bot": user.is_bot,
        "is_app_user": user.is_bot,
        "tz": "Etc/UTC",
        "profile": {"real_name": user.real_name, "display_name": user.name},
    }


def file_json(file: StoredFile, base_url: str) -> dict[str, Any]:
    """A file as messages and `files.completeUploadExternal` show it."""
    address = f"{base_url}files/{file.id}/{quote(file.name)}"
    return {
        "id": file.id,
        "name": file.name,
        "title": file.title,
        "mimetype": mimetypes.guess_type(file.name)[0] or "application/octet-stream",
        "size": file.size,
        "user": file.user,
        "mode": "hosted",
        "url_private": address,
        "url_private_download": address,
        "permalink": address,
    }
