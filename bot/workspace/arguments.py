"""A Web API call's arguments, however slack_sdk sends them: JSON, form, multipart or query string."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from bot.workspace.errors import SlackError, missing_argument

JSON_ARGUMENTS = ("blocks", "attachments", "metadata", "files", "view")
"""Arguments that a form carries as JSON text."""


async def read_arguments(request: web.Request) -> dict[str, Any]:
    """The arguments of a call, those that a form carries as JSON text decoded.

    Raises:
        SlackError: `invalid_json`, `json_not_object`, or the argument's own error such as `invalid_blocks_format`.
    """
    arguments: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json":
        text = await request.text()
        try:
            body = json.loads(text or "{}")
        except ValueError as error:
            raise SlackError("invalid_json") from error
        if not isinstance(body, dict):
            raise SlackError("json_not_object")
        arguments.update(body)
    elif request.method == "POST":
        arguments.update(await request.post())
    for name in JSON_ARGUMENTS:
        if isinstance(arguments.get(name), str):
            try:
                arguments[name] = json.loads(arguments[name])
            except ValueError as error:
                code = f"invalid_{name}_format" if name in ("blocks", "metadata") else "invalid_arguments"
                raise SlackError(code, [f"{name} is not JSON"]) from error
    return arguments


class Arguments:
    """Typed access to the arguments of one call."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def required(self, name: str) -> str:
        """A string that must be there and not empty."""
        value = self.values.get(name)
        if value is None or value == "":
            raise missing_argument(name)
        return str(value)

    def optional(self, name: str) -> str | None:
        """A string, None when absent or empty."""
        value = self.values.get(name)
        return None if value is None or value == "" else str(value)

    def flag(self, name: str) -> bool:
        """A boolean in any of the spellings that Slack takes."""
        return self.values.get(name) in (True, 1, "1", "true", "True")

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number from 1 to `most`."""
        value = self.values.get(name, default)
        try:
            number = int(value)
        except (TypeError, ValueError) as error:
            raise SlackError("invalid_arguments", [f"{name} must be a number"]) from error
        if number < 1:
            raise SlackError("invalid_limit")
        return min(number, most)

    def array(self, name: str) -> list[Any] | None:
        """A list, None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise SlackError(f"invalid_{name}_format" if name == "blocks" else "invalid_arguments")
        return value
