"""What comes with a command or a click: trigger ids, and response URLs with their five uses in thirty minutes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bot.workspace.arguments import Arguments
from bot.workspace.errors import SlackError
from bot.workspace.records import Message
from bot.workspace.state import BOT_USER, TEAM_ID, WorkspaceState

RESPONSE_USES = 5
RESPONSE_SECONDS = 30 * 60
TRIGGER_SECONDS = 3.0


@dataclass(slots=True)
class Conversation:
    """One command or click, and what was answered to it."""

    channel: str
    user: str
    opened_at: float
    """Seconds of a monotonic clock."""
    original: Message | None = None
    """What `replace_original` and `delete_original` mean: the clicked message, or the last answer."""
    thread_ts: str | None = None
    """The thread of the clicked message: answers go there."""
    uses: int = 0


class Interactions:
    """Trigger ids and response URLs that are still good.

    Args:
        state: Where answers are posted.
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, state: WorkspaceState, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        self._conversations: dict[str, Conversation] = {}
        self._triggers: dict[str, float] = {}

    def open(self, channel: str, user: str, original: Message | None = None) -> tuple[str, str]:
        """Begin a conversation.

        Args:
            channel: Where the command was typed or the clicked message stands.
            user: Who did it.
            original: The clicked message.

        Returns:
            A response key (the last part of the response URL) and a trigger id.
        """
        now = self._clock()
        self._conversations = {
            key: conversation
            for key, conversation in self._conversations.items()
            if now - conversation.opened_at < 2 * RESPONSE_SECONDS
        }
        self._triggers = {trigger: at for trigger, at in self._triggers.items() if now - at < RESPONSE_SECONDS}
        key = secrets.token_urlsafe(18)
        thread_ts = original.thread_ts if original is not None else None
        self._conversations[key] = Conversation(channel, user, now, original, thread_ts)
        trigger = f"{secrets.randbelow(10**12)}.{TEAM_ID}.{secrets.token_hex(16)}"
        self._triggers[trigger] = now
        return key, trigger

    def use_trigger(self, trigger: str) -> None:
        """Use up a trigger id.

        Raises:
            SlackError: `invalid_trigger_id`, `expired_trigger_id` after 3 seconds, or `exchanged_trigger_id`.
        """
        if trigger not in self._triggers:
            raise SlackError("invalid_trigger_id")
        opened_at = self._triggers[trigger]
        if opened_at < 0:
            raise SlackError("exchanged_trigger_id")
        if self._clock() - opened_at > TRIGGER_SECONDS:
            raise SlackError("expired_trigger_id")
        self._triggers[trigger] = -1.0

    def respond(self, key: str, arguments: Arguments, content: dict[str, Any]) -> Message:
        """Use a response URL.

        Args:
            key: Last part of the URL.
            arguments: What the bot sent.
            content: Its text and blocks, checked.

        Returns:
            The message that was posted, replaced or deleted.

        Raises:
            SlackError: `no_service`, `expired_url` or `used_url`.
        """
        conversation = self._conversations.get(key)
        if conversation is None:
            raise SlackError("no_service")
        if self._clock() - conversation.opened_at > RESPONSE_SECONDS:
            raise SlackError("expired_url")
        if conversation.uses >= RESPONSE_USES:
            raise SlackError("used_url")
        conversation.uses += 1
        return self._answer(conversation, arguments, content)

    def acknowledge(self, key: str, arguments: Arguments, content: dict[str, Any]) -> Message:
        """Post the answer that came with the acknowledgement itself; uses up nothing."""
        return self._answer(self._conversations[key], arguments, content)

    def _answer(self, conversation: Conversation, arguments: Arguments, content: dict[str, Any]) -> Message:
        original = conversation.original
        if original is not None and arguments.flag("delete_original"):
            conversation.original = None
            return self._state.edit(original, edited=False, deleted=True)
        if original is not None and arguments.flag("replace_original"):
            conversation.original = self._state.edit(original, **({"blocks": ()} | content))
            return conversation.original
        in_channel = arguments.optional("response_type") == "in_channel"
        conversation.original = self._state.post(
            conversation.channel,
            BOT_USER.id,
            **content,
            thread_ts=arguments.optional("thread_ts") or conversation.thread_ts,
            visible_to=None if in_channel else conversation.user,
        )
        return conversation.original


def with_ids(blocks: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Blocks with the block ids and action ids that Slack makes up where the sender gave none."""
    completed = []
    for block in blocks:
        block = {"block_id": secrets.token_urlsafe(4)} | block  # noqa: PLW2901 - a copy, the sender's stays as it is
        if isinstance(block.get("elements"), list) and block["type"] == "actions":
            block["elements"] = [{"action_id": secrets.token_urlsafe(4)} | element for element in block["elements"]]
        if isinstance(block.get("accessory"), dict):
            block["accessory"] = {"action_id": secrets.token_urlsafe(4)} | block["accessory"]
        completed.append(block)
    return tuple(completed)
