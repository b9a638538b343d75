"""Carries out what people ask for, away from Slack's three seconds, and answers whoever asked."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from datetime import UTC, datetime
from uuid import uuid4

from slack_bolt import Respond
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.commands import parse_command
from bot.render.answers import render_answer, render_bug, render_error
from bot.render.message import Block, Message
from bot.service import Request, Service
from runner.errors import QLoRAError

Reply = Callable[[Message], None]
"""Shows an answer to the one person who asked."""
OK = 200

_log = logging.getLogger(__name__)


class Desk:
    """Takes requests from the listeners, which only acknowledge.

    Args:
        service: What commands do.
        work: Threads of its own, so that slow answers never delay an acknowledgement.
    """

    def __init__(self, service: Service, work: Executor) -> None:
        self._service = service
        self._work = work

    def take(self, text: str, request: Request, reply: Reply) -> None:
        """Carry out a typed command in a thread of the desk.

        Args:
            text: As Slack delivers it, with `&`, `<` and `>` escaped.
            request: Who asks, and where.
            reply: Where the answer goes.
        """
        self._work.submit(self._carry_out, html.unescape(text), request, reply)

    def _carry_out(self, text: str, request: Request, reply: Reply) -> None:
        try:
            reply(self._answer(text, request))
        except Exception:  # noqa: BLE001 - nobody waits for this thread's result: the log is where it can be found
            _log.exception("%s in %s could not be answered to %r.", request.user, request.channel, text[:80])

    def _answer(self, text: str, request: Request) -> Message:
        try:
            command = parse_command(text, in_thread=request.job_id is not None)
            return render_answer(self._service.answer(command, request), now=datetime.now(UTC))
        except QLoRAError as error:
            _log.info("%s asked for %r: %s (%s)", request.user, text[:80], error.message, error.code)
            return render_error(error)
        except Exception:  # noqa: BLE001 - whoever asked is told, and the log keeps the traceback
            reference = uuid4().hex[:8]
            _log.exception("Reference %s: %s asked for %r.", reference, request.user, text[:80])
            return render_bug(reference)


def reply_by_response_url(respond: Respond, client: WebClient, request: Request) -> Reply:
    """Answer through the address that came with the command or click: it works in every channel.

    Where Slack does not take it, the answer goes the other way, by `chat.postEphemeral`.
    """

    def reply(message: Message) -> None:
        for blocks in _choices(message):
            response = respond(
                text=message.text,
                blocks=list(blocks),
                response_type="ephemeral",
                replace_original=False,
                unfurl_links=False,
                unfurl_media=False,
            )
            if response.status_code == OK:
                return
            _log.warning("The response address answered %s %s.", response.status_code, (response.body or "")[:80])
        reply_by_api(client, request)(message)

    return reply


def reply_by_api(client: WebClient, request: Request, thread_ts: str | None = None) -> Reply:
    """Answer with `chat.postEphemeral`, in a thread if one is named."""

    def reply(message: Message) -> None:
        *choices, last = _choices(message)
        for blocks in choices:
            try:
                _post(client, request, thread_ts, message.text, blocks)
            except SlackApiError as error:
                if error.response.get("error") != "invalid_blocks":
                    raise
            else:
                return
        _post(client, request, thread_ts, message.text, last)

    return reply


def _choices(message: Message) -> Iterator[tuple[Block, ...]]:
    yield message.blocks
    if message.classic:
        yield message.classic


def _post(client: WebClient, request: Request, thread_ts: str | None, text: str, blocks: tuple[Block, ...]) -> None:
    client.chat_postEphemeral(
        channel=request.channel, user=request.user, thread_ts=thread_ts, text=text, blocks=list(blocks)
    )
