"""Socket Mode: WebSocket connections of the bot, and envelopes that are each delivered to one of them until acked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import struct
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import WSMsgType, web

from bot.workspace.errors import SlackError
from bot.workspace.faults import DisconnectKind
from bot.workspace.state import APP_ID

MOST_CONNECTIONS = 10
EVENT_RETRIES = 3


class NotAcknowledgedError(Exception):
    """`dispatch_failed`: no bot is connected. `operation_timeout`: it did not acknowledge in time."""


@dataclass(slots=True)
class Envelope:
    """One request to the bot, pending until its acknowledgement."""

    kind: str
    payload: dict[str, Any]
    accepts_response_payload: bool
    retry_attempt: int = 0
    retry_reason: str = ""
    id: str = field(default_factory=lambda: str(uuid4()))
    connection: web.WebSocketResponse | None = None
    """Where it was sent last, None while it waits for a connection."""
    reply: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def body(self) -> dict[str, Any]:
        """What goes over the wire."""
        body: dict[str, Any] = {
            "envelope_id": self.id,
            "type": self.kind,
            "payload": self.payload,
            "accepts_response_payload": self.accepts_response_payload,
        }
        if self.kind == "events_api":
            body |= {"retry_attempt": self.retry_attempt, "retry_reason": self.retry_reason}
        return body


class SocketHub:
    """The workspace's end of Socket Mode.

    Args:
        ack_timeout_s: Seconds that the bot has for an acknowledgement; Slack gives 3.
    """

    def __init__(self, ack_timeout_s: float) -> None:
        self.address = ""
        """`ws://host:port/`, set once the port is known."""
        self._ack_timeout_s = ack_timeout_s
        self._tickets: set[str] = set()
        self._open: list[web.WebSocketResponse] = []
        self._receiving: list[web.WebSocketResponse] = []
        self._refreshed: list[web.WebSocketResponse] = []
        self._pending: dict[str, Envelope] = {}
        self._turn = itertools.count()
        self._connected = asyncio.Event()
        self._events: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Connections that envelopes may go to now."""
        return len(self._receiving)

    async def wait_connected(self) -> None:
        """Until there is at least one."""
        await self._connected.wait()

    def new_address(self) -> str:
        """A WebSocket address that works once.

        Raises:
            SlackError: `too_many_websockets` beyond 10 connections.
        """
        if len(self._open) >= MOST_CONNECTIONS:
            raise SlackError("too_many_websockets")
        ticket = secrets.token_urlsafe(16)
        self._tickets.add(ticket)
        return f"{self.address}link/?ticket={ticket}&app_id={APP_ID}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One connection, from the handshake to its end."""
        ticket = request.query.get("ticket", "")
        if ticket not in self._tickets:
            return web.Response(
                status=403, text="This address is not, or no longer, valid: call apps.connections.open."
            )
        self._tickets.remove(ticket)
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        self._open.append(connection)
        try:
            await connection.send_json(self._hello())
            self._receiving.append(connection)
            self._connected.set()
            self._end_refreshed()
            await self._send_waiting()
            async for message in connection:
                if message.type is WSMsgType.TEXT:
                    self._receive(message.json())
        finally:
            self._open.remove(connection)
            self._retire(connection)
            await self._send_waiting()
        return connection

    async def deliver(self, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Deliver a slash command or an interaction and wait for the acknowledgement.

        Returns:
            The payload of the acknowledgement, empty when it carried none.

        Raises:
            NotAcknowledgedError: No bot is connected, or none acknowledged in time.
        """
        if not self._receiving:
            raise NotAcknowledgedError("dispatch_failed")
        return await self._attempt(Envelope(kind, payload, accepts_response_payload=True))

    def publish(self, payload: dict[str, Any]) -> None:
        """Deliver an Events API payload in the background, again up to three times until acknowledged."""
        task = asyncio.get_running_loop().create_task(self._publish(payload))
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def disconnect(self, kind: DisconnectKind) -> int:
        """End all connections and say how many there were.

        Args:
            kind: `refresh` and `warning` announce it as Slack does every few hours and leave the closing to the bot,
                `close` says goodbye by a close frame, `reset` says nothing: the bot's next read fails.
        """
        ended = list(self._open)
        for connection in ended:
            self._retire(connection)
            # One that breaks at this very moment has ended too.
            with contextlib.suppress(ConnectionError):
                await self._end(connection, kind)
        return len(ended)

    async def close(self) -> None:
        """End everything; pending deliveries count as not acknowledged."""
        for task in list(self._events):
            task.cancel()
        for envelope in self._pending.values():
            envelope.reply.cancel()
        for connection in list(self._open):
            self._retire(connection)
            await connection.close(code=1001, message=b"going away")

    # --- inside ----------------------------------------------------------------------------------------------------

    def _hello(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "num_connections": len(self._open),
            "debug_info": {"host": "local", "approximate_connection_time": 18060},
            "connection_info": {"app_id": APP_ID},
        }

    async def _publish(self, payload: dict[str, Any]) -> None:
        for attempt in range(EVENT_RETRIES + 1):
            await self._connected.wait()
            envelope = Envelope("events_api", payload, accepts_response_payload=False, retry_attempt=attempt)
            envelope.retry_reason = "timeout" if attempt else ""
            with contextlib.suppress(NotAcknowledgedError):
                await self._attempt(envelope)
                return

    async def _attempt(self, envelope: Envelope) -> dict[str, Any]:
        self._pending[envelope.id] = envelope
        try:
            await self._send_waiting()
            return await asyncio.wait_for(envelope.reply, self._ack_timeout_s)
        except TimeoutError:
            raise NotAcknowledgedError("operation_timeout") from None
        finally:
            del self._pending[envelope.id]

    async def _send_waiting(self) -> None:
        """Send every envelope that has no connection to the next one in turn."""
        for envelope in list(self._pending.values()):
            if envelope.connection is None and self._receiving:
                connection = self._receiving[next(self._turn) % len(self._receiving)]
                envelope.connection = connection
                # A connection that has just broken retires itself and hands its envelopes back.
                with contextlib.suppress(ConnectionError):
                    await connection.send_json(envelope.body())

    async def _end(self, connection: web.WebSocketResponse, kind: DisconnectKind) -> None:
        if kind == "reset":
            _reset(connection)
        elif kind == "close":
            await connection.close(code=1001, message=b"going away")
        else:
            reason = "refresh_requested" if kind == "refresh" else "warning"
            self._refreshed.append(connection)
            await connection.send_json({"type": "disconnect", "reason": reason, "debug_info": {"host": "local"}})

    def _end_refreshed(self) -> None:
        """Half-close what was told to go, now that there is a successor: late acknowledgements still come in.

        slack_sdk reads from the successor only after its read from the old connection returns, which takes up to 3 s.
        """
        for connection in self._refreshed:
            transport = _transport(connection)
            if connection in self._open and transport is not None and transport.can_write_eof():
                transport.write_eof()
        self._refreshed.clear()

    def _receive(self, body: dict[str, Any]) -> None:
        envelope = self._pending.get(str(body.get("envelope_id")))
        if envelope is not None and not envelope.reply.done():
            envelope.reply.set_result(body.get("payload") or {})

    def _retire(self, connection: web.WebSocketResponse) -> None:
        """Send nothing more to it. What it has not acknowledged goes elsewhere once it is really gone."""
        if connection in self._receiving:
            self._receiving.remove(connection)
        if not self._receiving:
            self._connected.clear()
        if connection not in self._open:
            for envelope in self._pending.values():
                if envelope.connection is connection:
                    envelope.connection = None


def _transport(connection: web.WebSocketResponse) -> asyncio.WriteTransport | None:
    request = connection._req  # noqa: SLF001 - aiohttp has no public way to the socket
    return None if request is None else request.transport


def _reset(connection: web.WebSocketResponse) -> None:
    transport = _transport(connection)
    if transport is not None:
        # Linger 0 makes the kernel send RST, so the other side's read fails at once instead of seeing an orderly end.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
