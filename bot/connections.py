"""Finds Redis and the workspace at the start, and waits for them a while: parts come up in any order."""

from __future__ import annotations

import logging
import time

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.settings import BotSettings, SlackAccess, find_workspace
from runner.embedded_redis import resolve_redis_url
from runner.errors import UnavailableError
from runner.settings import RunnerSettings
from runner.store import Store

_TOO_MANY_REQUESTS, _SERVER_ERROR = 429, 500

_log = logging.getLogger(__name__)


def connect_redis(settings: RunnerSettings, *, deadline: float) -> tuple[str, Store]:
    """Connect to the store.

    Args:
        settings: Names Redis, or the state folder of the embedded one.
        deadline: Second of the monotonic clock at which waiting ends.

    Returns:
        Redis' URL and the store.

    Raises:
        UnavailableError: It does not answer in time.
    """
    url = resolve_redis_url(settings, max(0.0, deadline - time.monotonic()))
    while True:
        try:
            return url, Store.connect(url, lease_s=settings.lease_s, retention=settings.retention)
        except UnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            _log.info("Waiting for Redis: %s", error.message)
            time.sleep(1.0)


def connect_slack(settings: BotSettings, *, deadline: float) -> tuple[SlackAccess, str]:
    """Find the workspace and ask it who the bot is.

    Args:
        settings: The tokens, or the state folder of the local workspace.
        deadline: Second of the monotonic clock at which waiting ends.

    Returns:
        Where the workspace is, and its name.

    Raises:
        UnavailableError: It does not answer in time, or refuses the token.
    """
    while True:
        access = settings.slack or find_workspace(
            settings.runner.state_dir, wait_s=max(0.0, deadline - time.monotonic())
        )
        client = WebClient(token=access.bot_token, base_url=access.api_url, timeout=5, retry_handlers=[])
        try:
            return access, str(client.auth_test()["team"])
        except SlackApiError as error:
            code, status = str(error.response.get("error")), int(error.response.status_code)
            # The file of a local workspace that was killed names tokens that its successor does not know.
            passing = access.local or status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS
            if not passing or time.monotonic() >= deadline:
                raise UnavailableError(
                    f"Slack refuses the bot token ({code}).",
                    hint="Check SLACK_BOT_TOKEN: api.slack.com/apps, your app, OAuth & Permissions.",
                ) from error
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"The workspace at {access.api_url} does not answer: {error}.",
                    hint="Check the network, SLACK_API_URL, or that `python -m bot.workspace` runs.",
                ) from error
            _log.info("Waiting for the workspace at %s.", access.api_url)
        time.sleep(0.5)
