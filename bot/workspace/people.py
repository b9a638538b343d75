"""What people do in the workspace: type commands, click, write; and what they see of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bot.workspace.arguments import Arguments
from bot.workspace.errors import SlackError
from bot.workspace.methods import Services, checked_content, has_content, thread_root
from bot.workspace.payloads import app_mention, block_actions, slash_command
from bot.workspace.records import Answer, Channel, Message, User
from bot.workspace.sockets import NotAcknowledgedError
from bot.workspace.state import BOT_USER, TEAM_ID, WorkspaceState
from bot.workspace.wire import message_json
from runner.errors import UsageError


class ChangeFeed:
    """Lets several readers wait for the next change."""

    def __init__(self, state: WorkspaceState) -> None:
        self._state = state
        self._changed = asyncio.Event()
        self._closed = False
        state.listeners.append(self._wake)

    async def wait(self, after: int, wanted: Callable[[Message], bool], timeout_s: float) -> list[Message]:
        """Messages changed since `after` that are wanted; empty when none came in time.

        Args:
            after: A number of the state's sequence.
            wanted: Which messages count.
            timeout_s: Longest wait.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            changed = self._changed
            found = [message for message in self._state.changes_after(after) if wanted(message)]
            left = deadline - time.monotonic()
            if found or left <= 0 or self._closed:
                return found
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                continue

    def close(self) -> None:
        """Send all readers home."""
        self._closed = True
        self._state.listeners.remove(self._wake)
        self._changed.set()

    def _wake(self, _message: Message) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class People:
    """Acts in the workspace on behalf of its users.

    Args:
        services: The workspace.
        feed: Its changes.
    """

    def __init__(self, services: Services, feed: ChangeFeed) -> None:
        self._services = services
        self._state = services.state
        self._feed = feed

    def user(self, name: str) -> User:
        """A user by id or name.

        Raises:
            UsageError: There is none.
        """
        user = self._state.find_user(name)
        if user is None:
            raise UsageError(f"There is no user {name!r}.", hint=f"There are: {_names(self._state.users.values())}.")
        return user

    def channel(self, name: str) -> Channel:
        """A channel by id or name.

        Raises:
            UsageError: There is none.
        """
        channel = self._state.find_channel(name)
        if channel is None:
            known = _names(self._state.channels.values())
            raise UsageError(f"There is no channel {name!r}.", hint=f"There are: {known}.")
        return channel

    async def command(self, line: str, user: User, channel: Channel, *, wait_s: float) -> Answer:
        """Type a slash command and wait for its first answer.

        Args:
            line: Such as `/qlora status`.
            user: Who types.
            channel: Where. Slack knows no slash commands inside threads.
            wait_s: Longest wait for an answer after the acknowledgement, 0 for none.
        """
        start = self._state.sequence
        key, trigger = self._services.interactions.open(channel.id, user.id)
        payload = slash_command(line, user, channel, response_url=self._response_url(key), trigger_id=trigger)

        def answers(message: Message) -> bool:
            return (
                message.user == BOT_USER.id
                and message.channel == channel.id
                and message.posted_seq > start
                and (message.visible_to == user.id or (message.visible_to is None and message.is_root))
            )

        return await self._deliver("slash_commands", payload, key=key, start=start, answers=answers, wait_s=wait_s)

    async def click(self, message: Message, action: str, user: User, *, wait_s: float) -> Answer:
        """Click a button and wait for the first visible consequence.

        Args:
            message: Where the button is.
            action: Its action id or its label.
            user: Who clicks.
            wait_s: Longest wait after the acknowledgement, 0 for none.

        Raises:
            UsageError: There is no such button.
        """
        block_id, element = _find_element(message, action)
        start = self._state.sequence
        key, trigger = self._services.interactions.open(message.channel, user.id, message)
        payload = block_actions(
            element,
            block_id,
            user,
            self._state.channels[message.channel],
            message,
            shown=message_json(self._state, message, base_url=self._services.base_url),
            response_url=self._response_url(key),
            trigger_id=trigger,
            action_ts=self._state.next_ts(),
        )
        root = message.thread_ts or message.ts

        def answers(other: Message) -> bool:
            seen = other.visible_to in (None, user.id)
            near = other.ts == message.ts or other.thread_ts == root or other.is_root
            return other.user == BOT_USER.id and other.channel == message.channel and seen and near

        return await self._deliver("interactive", payload, key=key, start=start, answers=answers, wait_s=wait_s)

    def post(self, text: str, user: User, channel: Channel, *, thread_ts: str | None) -> Message:
        """Write a message; one that mentions the bot reaches it as an event.

        Raises:
            UsageError: There is no such thread, or no text.
        """
        if not text.strip():
            raise UsageError("A message needs text.")
        try:
            root = thread_root(self._state, channel.id, thread_ts)
        except SlackError as error:
            raise UsageError(f"There is no message {thread_ts} in #{channel.name}.") from error
        message = self._state.post(channel.id, user.id, text=text, thread_ts=root)
        if f"<@{BOT_USER.id}>" in text and BOT_USER.id in channel.members:
            self._services.hub.publish(app_mention(message))
        return message

    def _response_url(self, key: str) -> str:
        return f"{self._services.base_url}commands/{TEAM_ID}/{key}"

    async def _deliver(
        self,
        kind: str,
        payload: dict[str, Any],
        *,
        key: str,
        start: int,
        answers: Callable[[Message], bool],
        wait_s: float,
    ) -> Answer:
        try:
            acknowledgement = await self._services.hub.deliver(kind, payload)
        except NotAcknowledgedError as error:
            return Answer(acknowledged=False, error=str(error))
        arguments = Arguments(acknowledgement)
        try:
            content = checked_content(self._services.faults, arguments)
        except SlackError as error:
            return Answer(acknowledged=True, error=error.error, acknowledgement=acknowledgement)
        if has_content(content):
            self._services.interactions.acknowledge(key, arguments, content)
        messages = await self._feed.wait(start, answers, wait_s)
        return Answer(acknowledged=True, acknowledgement=acknowledgement, messages=tuple(messages))


def _find_element(message: Message, action: str) -> tuple[str, dict[str, Any]]:
    found: list[str] = []
    for block in message.blocks:
        elements = block.get("elements", []) if block["type"] == "actions" else [block.get("accessory")]
        for element in elements:
            if not element or "action_id" not in element:
                continue
            label = element.get("text", {}).get("text")
            if action in (element["action_id"], label):
                return block["block_id"], element
            found.append(f"{element['action_id']} [{label}]")
    buttons = ", ".join(found) or "none"
    raise UsageError(f"Message {message.ts} has no button {action!r}.", hint=f"Its buttons: {buttons}.")


def _names(named: Any) -> str:
    return ", ".join(item.name for item in named)
