"""The Web API over HTTP: arguments, faults, tokens, rate limits and the log around every method."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from bot.workspace import conversations, files, views
from bot.workspace.arguments import Arguments, read_arguments
from bot.workspace.call_log import CallLog
from bot.workspace.errors import SlackError
from bot.workspace.faults import Fault
from bot.workspace.methods import METHODS, Services, checked_content, has_content
from bot.workspace.rate_limits import RateLimits
from bot.workspace.records import Message

METHOD_MODULES = (conversations, files, views)
"""Imported so that their methods enter the table."""


class WebApi:
    """Answers `/api/<method>` and the response URLs.

    Args:
        services: What the methods work on.
        log: Notes every call.
        limits: Off unless switched on.
        tokens: Token to its kind, `bot` or `app`.
    """

    def __init__(self, services: Services, log: CallLog, limits: RateLimits, tokens: dict[str, str]) -> None:
        self._services = services
        self._log = log
        self._limits = limits
        self._tokens = tokens

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One Web API call."""
        name = request.match_info["method"]
        try:
            values = await read_arguments(request)
        except SlackError as error:
            self._log.end(self._log.begin(name, {}, None), error.error)
            return web.json_response(error.body())
        fault = self._services.faults.take(name)
        order = self._log.begin(name, values, fault.kind if fault else None)
        refusal = await self._before(fault, request)
        if refusal is not None:
            self._log.end(order, "not_applied")
            return refusal
        wait_s = self._limits.wait_before(name, str(values.get("channel")))
        if wait_s:
            self._log.end(order, "ratelimited")
            return _too_many(wait_s)
        try:
            body = {"ok": True} | self._call(name, request, values)
            written = body.get("ts") or body.get("message_ts")
            self._log.end(order, "ok", written if isinstance(written, str) else None)
        except SlackError as error:
            body = error.body()
            self._log.end(order, error.error)
        if fault is not None and fault.kind == "dropped_reply":
            return _drop(request)
        return web.json_response(body)

    async def handle_response_url(self, request: web.Request) -> web.StreamResponse:
        """One use of a response URL; logged as method `response_url`."""
        fault = self._services.faults.take("response_url")
        try:
            values = await read_arguments(request)
        except SlackError as error:
            self._log.end(self._log.begin("response_url", {}, None), error.error)
            return web.json_response(error.body())
        order = self._log.begin("response_url", values, fault.kind if fault else None)
        refusal = await self._before(fault, request)
        if refusal is not None:
            self._log.end(order, "not_applied")
            return refusal
        try:
            message = self._respond(request.match_info["key"], Arguments(values))
        except SlackError as error:
            self._log.end(order, error.error)
            gone = error.error in ("no_service", "expired_url", "used_url")
            return web.json_response(error.body(), status=404 if gone else 200)
        self._log.end(order, "ok", message.ts)
        return _drop(request) if fault is not None and fault.kind == "dropped_reply" else web.Response(text="ok")

    def _respond(self, key: str, arguments: Arguments) -> Message:
        content = checked_content(self._services.faults, arguments)
        if not has_content(content) and not arguments.flag("delete_original"):
            raise SlackError("no_text")
        return self._services.interactions.respond(key, arguments, content)

    def _call(self, name: str, request: web.Request, values: dict[str, Any]) -> dict[str, Any]:
        found = METHODS.get(name)
        if found is None:
            raise SlackError("unknown_method")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else str(values.get("token", ""))
        if not given:
            raise SlackError("not_authed")
        kind = self._tokens.get(given)
        if kind is None:
            raise SlackError("invalid_auth")
        if kind != found.caller:
            raise SlackError("not_allowed_token_type")
        return found.function(self._services, Arguments(values))

    async def _before(self, fault: Fault | None, request: web.Request) -> web.StreamResponse | None:
        """The reply of a fault that comes before the call is applied, None where the call goes on."""
        if fault is None:
            return None
        match fault.kind:
            case "rate_limited":
                return _too_many(fault.retry_after)
            case "server_error":
                return web.Response(status=fault.status, text="The service is unavailable at the moment.")
            case "dropped_request":
                return _drop(request)
            case "delayed":
                await asyncio.sleep(fault.delay_s)
        return None


def _too_many(seconds: int) -> web.Response:
    return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": str(seconds)})


def _drop(request: web.Request) -> web.Response:
    """Cut the connection; the response returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
