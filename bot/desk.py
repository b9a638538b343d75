"""Carries out what people ask for, away from Slack's three seconds, and answers whoever asked."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from slack_bolt import Respond
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.webhook import WebhookResponse

from bot.commands import parse_command
from bot.delivery import DeliveryStore
from bot.render.answers import render_answer, render_bug, render_error
from bot.render.message import REFUSED_BLOCKS, Block, Message
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
        memory: Which thread is which job's.
    """

    def __init__(self, service: Service, work: Executor, memory: DeliveryStore) -> None:
        self._service = service
        self._work = work
        self._memory = memory

    def take(self, text: str, request: Request, reply: Reply, thread_ts: str | None = None) -> None:
        """Carry out a typed command in a thread of the desk.

        Args:
            text: As Slack delivers it, with `&`, `<` and `>` escaped.
            request: Who asks, and where.
            reply: Where the answer goes.
            thread_ts: The thread it was typed in, if any; in a job's own, that job is meant.
        """
        self._work.submit(self._carry_out, html.unescape(text), request, reply, thread_ts)

    def _carry_out(self, text: str, request: Request, reply: Reply, thread_ts: str | None) -> None:
        try:
            reply(self._answer(text, request, thread_ts))
        except Exception:  # noqa: BLE001 - nobody waits for this thread's result: the log is where it can be found
            _log.exception("%s in %s could not be answered to %r.", request.user, request.channel, text[:80])

    def _answer(self, text: str, request: Request, thread_ts: str | None) -> Message:
        try:
            if thread_ts is not None:
                request = replace(request, job_id=self._memory.job_of_thread(request.channel, thread_ts))
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
        for blocks in message.choices():
            try:
                response = respond(
                    text=message.text,
                    blocks=list(blocks) or None,
                    response_type="ephemeral",
                    replace_original=False,
                    unfurl_links=False,
                    unfurl_media=False,
                )
            except OSError as error:
                _log.warning("The response address cannot be reached: %s", error)
                break
            if _is_taken(response):
                return
            _log.warning("The response address answered %s %s.", response.status_code, response.body[:80])
            if "blocks" not in response.body:
                break
        reply_by_api(client, request)(message)

    return reply


def _is_taken(response: WebhookResponse) -> bool:
    # Slack says `ok`, and some refusals are a 200 with JSON that says otherwise.
    return bool(response.status_code == OK and '"ok":false' not in response.body.replace(" ", ""))


def reply_by_api(client: WebClient, request: Request, thread_ts: str | None = None) -> Reply:
    """Answer with `chat.postEphemeral`, in a thread if one is named."""

    def reply(message: Message) -> None:
        for blocks in message.choices():
            try:
                _post(client, request, thread_ts, message.text, blocks)
            except SlackApiError as error:
                if error.response.get("error") not in REFUSED_BLOCKS or not blocks:
                    raise
            else:
                return

    return reply


def _post(client: WebClient, request: Request, thread_ts: str | None, text: str, blocks: tuple[Block, ...]) -> None:
    client.chat_postEphemeral(
        channel=request.channel, user=request.user, thread_ts=thread_ts, text=text, blocks=list(blocks) or None
    )
