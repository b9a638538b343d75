from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.app import close_socket_mode
from bot.workspace.server import LocalWorkspace


@pytest.fixture
def error_of() -> Callable[..., str]:
    """The error code with which Slack refuses a call."""

    def call(function: Callable[..., object], **arguments: object) -> str:
        with pytest.raises(SlackApiError) as caught:
            function(**arguments)
        return str(caught.value.response["error"])

    return call


@pytest.fixture
def connect(workspace: LocalWorkspace) -> Iterator[Callable[..., SocketModeHandler]]:
    """Connects a real Bolt app to the workspace, and disconnects all of them at the end."""
    handlers: list[SocketModeHandler] = []

    def connect_app(app: App, *, ping_interval: float = 0.2) -> SocketModeHandler:
        handler = SocketModeHandler(app, workspace.app_token, ping_interval=ping_interval)
        handlers.append(handler)
        handler.connect()  # type: ignore[no-untyped-call] # slack-bolt leaves it untyped
        workspace.client.wait_connected(len(handlers))
        return handler

    yield connect_app
    for handler in handlers:
        close_socket_mode(handler)


@pytest.fixture
def app(workspace: LocalWorkspace) -> App:
    """A Bolt app of this workspace without listeners."""
    return App(client=WebClient(token=workspace.bot_token, base_url=workspace.api_url, retry_handlers=[]))
