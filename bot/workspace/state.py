"""The workspace itself: who and what is in it, and how it changes. Knows no HTTP and no Block Kit.

Every change gets the next number of one sequence, goes to the journal and is told to the listeners. Not thread-safe:
the server's event loop is its only user.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from bot.workspace.journal import Journal
from bot.workspace.records import Channel, Message, StoredFile, User

TEAM_ID = "T0LOCAL000"
TEAM_NAME = "Local"
TEAM_DOMAIN = "local"
APP_ID = "A0QLORA000"
BOT_ID = "B0QLORA000"
BOT_USER = User(id="U0QLORABOT", name="qlora", real_name="QLoRA", is_bot=True)
YOU = User(id="U0LOCALYOU", name="you", real_name="You")
CHANNEL = Channel(id="C0QLORA000", name="qlora", members=(YOU.id, BOT_USER.id))


def new_id(prefix: str) -> str:
    """An id as Slack's own look: upper-case letters and digits."""
    return prefix + secrets.token_hex(5).upper()


class WorkspaceState:
    """Users, channels, messages and files of the one team `Local`.

    Args:
        journal: Replayed at once, then told every change but those of ephemeral messages.
        clock: Seconds since the epoch.
    """

    def __init__(self, journal: Journal | None = None, clock: Callable[[], float] = time.time) -> None:
        self.journal = journal or Journal(None)
        self.users = {user.id: user for user in (YOU, BOT_USER)}
        self.channels = {CHANNEL.id: CHANNEL}
        self.files: dict[str, StoredFile] = {}
        self.sequence = 0
        self.listeners: list[Callable[[Message], None]] = []
        self._messages: dict[str, dict[str, Message]] = {}
        self._clock = clock
        self._last_micros = 0
        for kind, record in self.journal.replay():
            self._replay(kind, record)

    # --- reading ---------------------------------------------------------------------------------------------------

    def find_user(self, name: str) -> User | None:
        """A user by id, name or @name."""
        if name in self.users:
            return self.users[name]
        return next((user for user in self.users.values() if user.name == name.removeprefix("@")), None)

    def find_channel(self, name: str) -> Channel | None:
        """A channel by id, name or #name."""
        if name in self.channels:
            return self.channels[name]
        named = name.removeprefix("#")
        return next((channel for channel in self.channels.values() if channel.name == named), None)

    def find_message(self, channel: str, ts: str) -> Message | None:
        """A message that is still there; ephemeral ones are found too."""
        message = self._messages.get(channel, {}).get(ts)
        return None if message is None or message.deleted else message

    def messages(self, channel: str) -> list[Message]:
        """All messages that are still there, replies and ephemeral ones included, oldest first."""
        return [message for message in self._messages.get(channel, {}).values() if not message.deleted]

    def roots(self, channel: str) -> list[Message]:
        """What everybody sees in the channel itself, oldest first."""
        return [m for m in self.messages(channel) if m.visible_to is None and (m.is_root or m.broadcast)]

    def thread(self, channel: str, root_ts: str) -> list[Message]:
        """A top-level message and its replies as everybody sees them, oldest first."""
        return [m for m in self.messages(channel) if m.visible_to is None and root_ts in (m.ts, m.thread_ts)]

    def changes_after(self, sequence: int) -> list[Message]:
        """Messages of all channels changed after that number, deleted ones included, in order of their last change."""
        changed = [m for ms in self._messages.values() for m in ms.values() if m.changed_seq > sequence]
        return sorted(changed, key=lambda message: message.changed_seq)

    # --- changing --------------------------------------------------------------------------------------------------

    def add_user(self, name: str) -> User:
        """Let somebody join the workspace and #qlora."""
        user = User(id=new_id("U"), name=name, real_name=name.title())
        self._put_user(user)
        home = self.channels[CHANNEL.id]
        self._put_channel(home.model_copy(update={"members": (*home.members, user.id)}))
        return user

    def add_channel(self, name: str, members: Iterable[str]) -> Channel:
        """Open a channel; the bot is in it only where `members` says so."""
        channel = Channel(id=new_id("C"), name=name, members=tuple(members))
        self._put_channel(channel)
        return channel

    def open_direct_message(self, user: str) -> Channel:
        """The direct message between that user and the bot, opened on first use."""
        for channel in self.channels.values():
            if channel.is_im and user in channel.members:
                return channel
        channel = Channel(id=new_id("D"), name=user, members=(user, BOT_USER.id), is_im=True)
        self._put_channel(channel)
        return channel

    def post(self, channel: str, user: str, **content: Any) -> Message:
        """Add a message.

        Args:
            channel: Id of the channel.
            user: Id of the author.
            content: Fields of `Message`: text, blocks, thread_ts, metadata, visible_to, …
        """
        number = self.sequence + 1
        message = Message(
            channel=channel, ts=self.next_ts(), user=user, posted_seq=number, changed_seq=number, **content
        )
        self._put_message(message)
        return message

    def edit(self, message: Message, *, edited: bool = True, **content: Any) -> Message:
        """Replace fields of a message; `edited` says whether people see that it was edited."""
        update = dict(content, changed_seq=self.sequence + 1)
        if edited:
            update["edited_ts"] = self.next_ts()
        changed = message.model_copy(update=update)
        self._put_message(changed)
        return changed

    def put_file(self, file: StoredFile) -> None:
        """Add a file or replace what is known of it."""
        self.files[file.id] = file
        self.journal.append("file", file.model_dump(mode="json"))

    def next_ts(self) -> str:
        """A timestamp that no message has, greater than every one before it."""
        self._last_micros = max(int(self._clock() * 1_000_000), self._last_micros + 1)
        return f"{self._last_micros // 1_000_000}.{self._last_micros % 1_000_000:06d}"

    # --- remembering -----------------------------------------------------------------------------------------------

    def _put_user(self, user: User) -> None:
        self.users[user.id] = user
        self.journal.append("user", user.model_dump(mode="json"))

    def _put_channel(self, channel: Channel) -> None:
        self.channels[channel.id] = channel
        self.journal.append("channel", channel.model_dump(mode="json"))

    def _put_message(self, message: Message) -> None:
        self.sequence = message.changed_seq
        self._messages.setdefault(message.channel, {})[message.ts] = message
        if message.visible_to is None:
            self.journal.append("message", message.model_dump(mode="json", exclude_defaults=True))
        for listener in self.listeners:
            listener(message)

    def _replay(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "message":
            message = Message.model_validate(record)
            self.sequence = message.changed_seq
            self._messages.setdefault(message.channel, {})[message.ts] = message
            for ts in (message.ts, message.edited_ts):
                if ts is not None:
                    self._last_micros = max(self._last_micros, int(ts.replace(".", "")))
        elif kind == "user":
            user = User.model_validate(record)
            self.users[user.id] = user
        elif kind == "channel":
            channel = Channel.model_validate(record)
            self.channels[channel.id] = channel
        elif kind == "file":
            file = StoredFile.model_validate(record)
            self.files[file.id] = file
