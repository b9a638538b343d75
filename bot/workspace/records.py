"""What a workspace holds, as immutable records: users, channels, messages, files. Imports nothing that does I/O."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from runner.reports import Record


class User(Record):
    """A person or a bot."""

    id: str
    """Upper-case letters and digits, as Slack's own."""
    name: str
    """What people type after @."""
    real_name: str
    is_bot: bool = False


class Channel(Record):
    """A channel, or a direct message between the bot and one person."""

    id: str
    name: str
    """Without #; the other person's id for a direct message."""
    members: tuple[str, ...]
    """User ids; the bot can only read and post where it is one of them."""
    is_im: bool = False


class StoredFile(Record):
    """An uploaded file; its bytes lie in the journal's folder."""

    id: str
    name: str
    title: str
    size: int
    """Bytes."""
    user: str
    shared: bool = False
    """False between the request for an upload URL and its completion."""
    uploaded: bool = False


class Message(Record):
    """One message as it stands now; an edit puts a new record in its place."""

    channel: str
    ts: str
    """`<seconds>.<microseconds>`: its name within the channel, strictly increasing in the whole workspace."""
    user: str
    """Who wrote it."""
    text: str = ""
    """As sent, `&amp; &lt; &gt;` included."""
    blocks: tuple[dict[str, Any], ...] = ()
    attachments: tuple[dict[str, Any], ...] = ()
    thread_ts: str | None = None
    """The top-level message it replies to, None for a top-level message."""
    broadcast: bool = False
    """A reply that is also shown in the channel."""
    metadata: dict[str, Any] | None = None
    """`event_type` and `event_payload`, None where the sender gave none."""
    files: tuple[str, ...] = ()
    """Ids of files."""
    reactions: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Emoji name to the users who chose it, in order."""
    edited_ts: str | None = None
    """When its author last changed it, None when never."""
    visible_to: str | None = None
    """The one user who sees it (an ephemeral message), None when everybody does."""
    deleted: bool = False
    posted_seq: int
    """Place of its posting in the order of all changes of the workspace."""
    changed_seq: int
    """Place of its last change; equals `posted_seq` while unchanged. Cursors are made of it."""

    @property
    def is_root(self) -> bool:
        """Whether it stands in the channel itself."""
        return self.thread_ts is None

    @property
    def job_id(self) -> str | None:
        """The job that its metadata names, None where it names none."""
        payload = (self.metadata or {}).get("event_payload") or {}
        job_id = payload.get("job_id")
        return job_id if isinstance(job_id, str) else None


class Call(Record):
    """One Web API call, as the log keeps it."""

    order: int
    """Place in the order of arrival, from 1."""
    method: str
    arguments: dict[str, Any]
    """As received, JSON arguments decoded, the token left out."""
    outcome: str
    """`ok`, Slack's error code, or `not_applied` where an injected fault came first."""
    fault: str | None = None
    """Kind of the injected fault that it met, None when it met none."""
    ts: str | None = None
    """The message that it wrote, where it wrote one."""


class Answer(Record):
    """What a person sees after a slash command or a click."""

    acknowledged: bool
    error: str | None = None
    """`dispatch_failed` when no bot is connected, `operation_timeout` when it did not acknowledge in time."""
    acknowledgement: dict[str, Any] = Field(default_factory=dict)
    """Payload of the acknowledgement, empty when it carried none."""
    messages: tuple[Message, ...] = ()
    """What the bot wrote for this person to see since, in order; empty when nothing came within the wait."""


class Changes(Record):
    """Messages that were posted, edited or deleted since a cursor, each as it stands now."""

    messages: tuple[Message, ...]
    cursor: int
    """Hand it in to get what comes after."""
