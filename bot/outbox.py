"""Sends one message to Slack exactly once, however often it is asked to.

`chat.postMessage` knows no idempotency key, and a lost reply does not tell whether the message is there. So before a
post the intent is remembered, after it the time stamp; a post whose outcome is unknown is looked up by its metadata
before it is sent again. Nothing here waits: what cannot be done now raises `Later`, and the caller asks again.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.web import SlackResponse

from bot.delivery import ROOT, DeliveryStore, ThreadMemory
from bot.render.message import REFUSED_BLOCKS, Block, Message
from runner.jobs import JobRecord

EVENT_TYPE = "qlora_event"
"""Type of the metadata on every message; its payload is `job_id` and `seq`."""
LOOKUP_MARGIN_S = 3600.0
"""Seconds before a job's submission that its root message is looked for, because clocks differ."""
UNANSWERED_WAIT_S = 15.0
"""Pause after a call that Slack took and did not answer in time: it may still be about to carry it out."""
PAGE = 200

_TRANSIENT = frozenset(
    {
        "internal_error",
        "fatal_error",
        "service_unavailable",
        "request_timeout",
        "team_added_to_org",
        "org_login_required",
    }
)
"""Slack's own trouble, after which the call may or may not have been carried out."""
_RATE_LIMITED = frozenset({"ratelimited", "rate_limited"})


class Later(Exception):  # noqa: N818 - not an error: the same call succeeds later
    """Not now.

    Args:
        wait_s: Seconds to wait, None where the caller should wait longer each time.
        uncertain: Whether it may have been carried out all the same.
    """

    def __init__(self, reason: str, wait_s: float | None = None, *, uncertain: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.uncertain = uncertain


class RefusedError(Exception):
    """Slack will not do this, now or later, as with `channel_not_found`, `is_archived` or `account_inactive`.

    Args:
        code: Slack's error code.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Post:
    """A message that has to be in a channel once."""

    job: JobRecord
    channel: str
    seq: int
    """Number of the event it tells of, `ROOT` for the root message."""
    message: Message
    thread_ts: str | None = None
    """The root message, None for the root message itself."""


class Outbox:
    """Posts and edits.

    Args:
        client: Without retry handlers: slack_sdk's own would send a message again blindly.
        memory: What has been said.
        may_post: Asked right before every post; False raises `Later`, because another bot may be posting.
    """

    def __init__(self, client: WebClient, memory: DeliveryStore, *, may_post: Callable[[], bool]) -> None:
        self._client = client
        self._memory = memory
        self._may_post = may_post

    def post(self, post: Post, known: ThreadMemory) -> str:
        """Make sure that a message is there, and say where.

        Args:
            post: The message.
            known: What is remembered of its thread, just now.

        Returns:
            Its time stamp; the caller remembers it.

        Raises:
            Later: Its outcome is not known yet, or Slack is busy.
            RefusedError: Slack refuses it for good.
            UnavailableError: Redis is away.
        """
        if known.intent == post.seq:
            found = self._find(post)
            if found is not None:
                return found
        if not self._may_post():
            raise Later("another bot may be posting", 1.0)
        self._memory.intend(post.job.id, post.seq)
        try:
            answer = self._send(post.job.id, post.message, partial(self._post, post), classic=known.classic)
        except Later as later:
            if not later.uncertain:
                # Slack said no: the next try need not look for it.
                self._memory.give_up(post.job.id)
            raise
        except RefusedError:
            self._memory.give_up(post.job.id)
            raise
        return str(answer["ts"])

    def edit(self, job_id: str, channel: str, ts: str, message: Message, *, classic: bool) -> None:
        """Replace a message's content; repeating it changes nothing.

        Raises:
            Later: Slack is busy or did not answer.
            RefusedError: Slack refuses it for good, for instance because somebody has deleted the message.
        """
        if not self._may_post():
            raise Later("another bot may be posting", 1.0)

        def send(blocks: tuple[Block, ...]) -> SlackResponse:
            return self._client.chat_update(channel=channel, ts=ts, text=message.text, blocks=list(blocks))

        self._send(job_id, message, send, classic=classic)

    def tell_privately(self, user: str, message: Message) -> None:
        """Send a direct message, at most once and without certainty: nothing hangs from it.

        Raises:
            Later: Slack is busy or did not answer.
            RefusedError: Slack refuses it, for instance because that is no Slack user.
        """
        _call(
            lambda: self._client.chat_postMessage(
                channel=user, text=message.text, blocks=list(message.blocks), unfurl_links=False, unfurl_media=False
            )
        )

    def _send(
        self, job_id: str, message: Message, send: Callable[[tuple[Block, ...]], SlackResponse], *, classic: bool
    ) -> SlackResponse:
        """Send with the best blocks that Slack takes; rather a plain message than none."""
        for blocks in message.choices(classic=classic):
            try:
                answer = _call(partial(send, blocks))
            except RefusedError as refusal:
                if refusal.code not in REFUSED_BLOCKS or not blocks:
                    raise
            else:
                if blocks and blocks == message.classic and not classic:
                    self._memory.remember_classic(job_id)
                return answer
        raise AssertionError("the last choice either returns or raises")

    def _post(self, post: Post, blocks: tuple[Block, ...]) -> SlackResponse:
        return self._client.chat_postMessage(
            channel=post.channel,
            thread_ts=post.thread_ts,
            text=post.message.text,
            blocks=list(blocks) or None,
            metadata={"event_type": EVENT_TYPE, "event_payload": {"job_id": post.job.id, "seq": post.seq}},
            unfurl_links=False,
            unfurl_media=False,
        )

    def _find(self, post: Post) -> str | None:
        """Look for a post whose outcome is unknown."""
        for message in self._history(post):
            metadata = message.get("metadata") or {}
            payload = metadata.get("event_payload") or {}
            if (
                metadata.get("event_type") == EVENT_TYPE
                and payload.get("job_id") == post.job.id
                and str(payload.get("seq")) == str(post.seq)
            ):
                return str(message["ts"])
        return None

    def _history(self, post: Post) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            answer = _call(partial(self._page, post, cursor))
            yield from answer["messages"]
            cursor = (answer.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return

    def _page(self, post: Post, cursor: str | None) -> SlackResponse:
        if post.seq == ROOT or post.thread_ts is None:
            oldest = post.job.submitted_at.timestamp() - LOOKUP_MARGIN_S
            return self._client.conversations_history(
                channel=post.channel, oldest=f"{oldest:.6f}", include_all_metadata=True, limit=PAGE, cursor=cursor
            )
        return self._client.conversations_replies(
            channel=post.channel, ts=post.thread_ts, include_all_metadata=True, limit=PAGE, cursor=cursor
        )


def _call(call: Callable[[], SlackResponse]) -> SlackResponse:
    """Carry out one Web API call and sort what may come of it.

    Raises:
        Later: Slack did not carry it out, or nobody knows.
        RefusedError: Slack did not and will not carry it out.
    """
    try:
        return call()
    except SlackApiError as error:
        response = error.response
        status, code = int(response.status_code), str(response.get("error", ""))
        if status == http.client.TOO_MANY_REQUESTS or code in _RATE_LIMITED:
            raise Later(code, _retry_after(response)) from error
        # Whatever is not Slack's JSON comes from something on the way, and says nothing about the call.
        if status >= http.client.INTERNAL_SERVER_ERROR or code in _TRANSIENT or " " in code:
            raise Later(f"{status} {code[:80]}", uncertain=True) from error
        raise RefusedError(code) from error
    except TimeoutError as error:
        raise Later("Slack has not answered", UNANSWERED_WAIT_S, uncertain=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise Later(f"{type(error).__name__}: {error}", uncertain=True) from error


def _retry_after(response: SlackResponse) -> float:
    headers: dict[str, Any] = {str(name).lower(): value for name, value in response.headers.items()}
    try:
        return max(float(headers["retry-after"]), 0.1)
    except (KeyError, TypeError, ValueError):
        return 30.0
