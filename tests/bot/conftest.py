from __future__ import annotations

from collections.abc import Iterator

import pytest
from slack_sdk import WebClient

from bot.workspace.server import LocalWorkspace


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    """A local workspace in memory, patient with acknowledgements because test machines are slow."""
    with LocalWorkspace(ack_timeout_s=20.0) as running:
        yield running


@pytest.fixture
def web_client(workspace: LocalWorkspace) -> WebClient:
    """slack_sdk's own client with the bot token, without retries."""
    return WebClient(token=workspace.bot_token, base_url=workspace.api_url, retry_handlers=[])
