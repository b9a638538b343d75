"""The control API under `/control/`: acting as a person, reading what people see, injecting faults, the call log.

JSON in, JSON out, with the control token as bearer. `bot.workspace.client` is its one typed caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from bot.workspace.call_log import CallLog
from bot.workspace.faults import DisconnectKind, Fault
from bot.workspace.methods import Services
from bot.workspace.people import ChangeFeed, People
from bot.workspace.rate_limits import RateLimits
from bot.workspace.records import Message
from bot.workspace.state import BOT_USER
from runner.errors import UsageError
from runner.reports import Record

LONGEST_WAIT_S = 60.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class CommandRequest(Record):
    """`POST command`."""

    line: str
    user: str
    channel: str
    wait_s: float


class ClickRequest(Record):
    """`POST click`."""

    ts: str
    action: str
    user: str
    channel: str
    wait_s: float


class PostRequest(Record):
    """`POST message`."""

    text: str
    user: str
    channel: str
    thread_ts: str | None


class ChannelRequest(Record):
    """`POST channel`."""

    name: str
    members: tuple[str, ...]


class DisconnectRequest(Record):
    """`POST disconnect`."""

    kind: DisconnectKind


class Control:
    """Routes of the control API.

    Args:
        services: The workspace.
        feed: Its changes.
        log: Its Web API calls.
        limits: Its rate limits.
        token: What callers must present.
    """

    def __init__(self, services: Services, feed: ChangeFeed, log: CallLog, limits: RateLimits, token: str) -> None:
        self._services = services
        self._state = services.state
        self._people = People(services, feed)
        self._feed = feed
        self._log = log
        self._limits = limits
        self._token = token

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "status", self._status),
            ("POST", "command", self._command),
            ("POST", "click", self._click),
            ("POST", "message", self._message),
            ("GET", "messages", self._messages),
            ("GET", "changes", self._changes),
            ("POST", "user", self._user),
            ("POST", "channel", self._channel),
            ("GET", "calls", self._calls),
            ("POST", "fault", self._fault),
            ("POST", "refuse_block", self._refuse_block),
            ("DELETE", "faults", self._clear_faults),
            ("POST", "rate_limits", self._rate_limits),
            ("POST", "disconnect", self._disconnect),
            ("GET", "file", self._file),
        ]
        return [web.route(verb, f"/control/{path}", self._guarded(handler)) for verb, path, handler in table]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") != f"Bearer {self._token}":
                return web.json_response({"message": "The control token is missing or wrong."}, status=401)
            try:
                return await handler(request)
            except UsageError as error:
                return web.json_response({"message": error.message, "hint": error.hint}, status=400)
            except ValidationError as error:
                return web.json_response({"message": f"Not a valid request: {error}", "hint": None}, status=400)

        return guarded

    # --- people ----------------------------------------------------------------------------------------------------

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "connections": self._services.hub.connections,
                "cursor": self._state.sequence,
                "bot_user": BOT_USER.id,
                "users": [user.model_dump() for user in self._state.users.values()],
                "channels": [channel.model_dump() for channel in self._state.channels.values()],
            }
        )

    async def _command(self, request: web.Request) -> web.Response:
        wanted = CommandRequest.model_validate_json(await request.read())
        user, channel = self._people.user(wanted.user), self._people.channel(wanted.channel)
        return _json(await self._people.command(wanted.line, user, channel, wait_s=min(wanted.wait_s, LONGEST_WAIT_S)))

    async def _click(self, request: web.Request) -> web.Response:
        wanted = ClickRequest.model_validate_json(await request.read())
        user, channel = self._people.user(wanted.user), self._people.channel(wanted.channel)
        message = self._state.find_message(channel.id, wanted.ts)
        if message is None or message.visible_to not in (None, user.id):
            raise UsageError(f"There is no message {wanted.ts} in #{channel.name}.")
        wait_s = min(wanted.wait_s, LONGEST_WAIT_S)
        return _json(await self._people.click(message, wanted.action, user, wait_s=wait_s))

    async def _message(self, request: web.Request) -> web.Response:
        wanted = PostRequest.model_validate_json(await request.read())
        user, channel = self._people.user(wanted.user), self._people.channel(wanted.channel)
        return _json(self._people.post(wanted.text, user, channel, thread_ts=wanted.thread_ts))

    async def _messages(self, request: web.Request) -> web.Response:
        channel = self._people.channel(request.query["channel"])
        wanted = self._filter(request)
        messages = [message for message in self._state.messages(channel.id) if wanted(message)]
        return web.json_response({"messages": _dump(messages), "cursor": self._state.sequence})

    async def _changes(self, request: web.Request) -> web.Response:
        after = int(request.query.get("after", "0"))
        timeout_s = min(float(request.query.get("timeout_s", "0")), LONGEST_WAIT_S)
        messages = await self._feed.wait(after, self._filter(request), timeout_s)
        cursor = messages[-1].changed_seq if messages else after
        return web.json_response({"messages": _dump(messages), "cursor": cursor})

    def _filter(self, request: web.Request) -> Callable[[Message], bool]:
        """Which messages the query means: a channel, a thread of it, and what one person may see."""
        channel = self._people.channel(request.query["channel"]).id
        thread_ts = request.query.get("thread_ts")
        viewer = self._people.user(request.query.get("viewer", "you")).id

        def wanted(message: Message) -> bool:
            if message.channel != channel or message.visible_to not in (None, viewer):
                return False
            return thread_ts is None or thread_ts in (message.ts, message.thread_ts)

        return wanted

    async def _user(self, request: web.Request) -> web.Response:
        return _json(self._state.add_user(str((await request.json())["name"])))

    async def _channel(self, request: web.Request) -> web.Response:
        wanted = ChannelRequest.model_validate_json(await request.read())
        members = [self._people.user(name).id for name in wanted.members]
        return _json(self._state.add_channel(wanted.name, members))

    # --- tests -----------------------------------------------------------------------------------------------------

    async def _calls(self, request: web.Request) -> web.Response:
        calls = self._log.calls(request.query.get("method"), int(request.query.get("after", "0")))
        return web.json_response({"calls": _dump(calls)})

    async def _fault(self, request: web.Request) -> web.Response:
        self._services.faults.inject(Fault.model_validate_json(await request.read()))
        return web.json_response({})

    async def _refuse_block(self, request: web.Request) -> web.Response:
        self._services.faults.refuse_block(str((await request.json())["block_type"]))
        return web.json_response({})

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        self._services.faults.clear()
        return web.json_response({})

    async def _rate_limits(self, request: web.Request) -> web.Response:
        self._limits.enabled = bool((await request.json())["enabled"])
        return web.json_response({})

    async def _disconnect(self, request: web.Request) -> web.Response:
        wanted = DisconnectRequest.model_validate_json(await request.read())
        return web.json_response({"ended": await self._services.hub.disconnect(wanted.kind)})

    async def _file(self, request: web.Request) -> web.Response:
        file = self._state.files.get(request.query["id"])
        if file is None or not file.uploaded:
            raise UsageError(f"There is no file {request.query['id']!r}.")
        return web.Response(body=self._state.journal.read_file(file.id), content_type="application/octet-stream")


def _json(record: Record) -> web.Response:
    return web.json_response(text=record.model_dump_json())


def _dump(records: list[Any]) -> list[dict[str, Any]]:
    return [record.model_dump(mode="json") for record in records]
