"""The bot put together: commands in, threads out. Everything that it works on is passed in."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.delivery import DeliveryStore
from bot.desk import Desk
from bot.job_thread import EDIT_EVERY_S
from bot.listeners import register
from bot.reporter import CALL_S, HOLD_S, Reporter
from bot.service import Service
from bot.settings import SlackAccess
from runner.errors import UnavailableError
from runner.store import Store

if TYPE_CHECKING:
    # At run time it is in memory by then; importing this module need not wait for it.
    from dramatiq.brokers.redis import RedisBroker

DESK_THREADS = 6
PING_EVERY_S = 2.0
"""Seconds between two looks at the Socket Mode connection: one that broke is replaced at the next look, one that went
silent after four missed answers."""

_log = logging.getLogger(__name__)


def build_app(client: WebClient, desk: Desk) -> App:
    """Build the Bolt app with every listener.

    Args:
        client: With the bot token; asked once who the bot is.
        desk: What the listeners hand requests to.

    Raises:
        slack_bolt.error.BoltError: Slack refuses the bot token.
    """
    app = App(client=client, logger=logging.getLogger("slack_bolt"), process_before_response=False)
    register(app, desk)
    return app


class Bot:
    """The running bot, as a context manager: answers commands and reports jobs until left.

    Raises UnavailableError when entered and Slack does not open Socket Mode.

    Args:
        access: The workspace.
        store: The jobs.
        broker: Where tickets go.
        projects_dir: The projects folder.
        hold_s: Seconds after which another bot may report in place of one that died.
        edit_every_s: Shortest pause between two edits of the same message.
    """

    def __init__(
        self,
        access: SlackAccess,
        store: Store,
        broker: RedisBroker,
        projects_dir: Path,
        *,
        hold_s: float = HOLD_S,
        edit_every_s: float = EDIT_EVERY_S,
    ) -> None:
        memory = DeliveryStore(store.client, retention=store.retention)
        self._work = ThreadPoolExecutor(DESK_THREADS, thread_name_prefix="desk")
        desk = Desk(Service(store, broker, projects_dir), self._work, memory)
        app = build_app(_client(access), desk)
        self._handler = SocketModeHandler(app, access.app_token, ping_interval=PING_EVERY_S, concurrency=4)
        self._stop = threading.Event()
        # Without retry handlers: slack_sdk's own would post again blindly after a lost reply.
        poster = WebClient(token=access.bot_token, base_url=access.api_url, timeout=CALL_S, retry_handlers=[])
        reporter = Reporter(store, poster, memory, hold_s=hold_s, edit_every_s=edit_every_s)
        self._reporting = threading.Thread(target=reporter.run, args=(self._stop,), name="reporter", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._handler.connect()  # type: ignore[no-untyped-call] # the library's own is not annotated
        except (SlackApiError, OSError) as error:
            close_socket_mode(self._handler)
            self._work.shutdown()
            raise UnavailableError(
                f"Socket Mode cannot be opened: {error}",
                hint="Check SLACK_APP_TOKEN: it needs connections:write, and Socket Mode has to be on for the app.",
            ) from error
        self._reporting.start()
        return self

    def __exit__(self, *_: object) -> None:
        # First no new requests, then finish what was acknowledged, then say what is left to say.
        close_socket_mode(self._handler)
        self._work.shutdown(wait=True)
        self._stop.set()
        self._reporting.join()

    def is_reporting(self) -> bool:
        """Whether the reporter's thread lives; it ends early only by a bug."""
        return self._reporting.is_alive()


def close_socket_mode(handler: SocketModeHandler) -> None:
    """Close the connection and end its threads, without the 4 s for which slack_sdk would wait for news first."""
    client = handler.client
    if client.current_session is not None and (connection := client.current_session.sock) is not None:
        # Ends the read under way, and nothing that is still to be sent: SSLSocket's own would end the encryption too.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RD)
    client.message_processor.event.set()
    client.message_queue.put(None)
    handler.close()  # type: ignore[no-untyped-call] # the library's own is not annotated


def _client(access: SlackAccess) -> WebClient:
    return WebClient(token=access.bot_token, base_url=access.api_url, timeout=CALL_S)
