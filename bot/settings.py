"""The bot's settings: the only place of `bot/` that reads the environment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import UnavailableError
from runner.settings import RunnerSettings, load_settings

SLACK_API_URL = "https://slack.com/api/"
WORKSPACE_FILE = "workspace.json"
"""Where the local workspace leaves its address and tokens, in the state folder."""
POLL_S = 0.1

_BOT_PREFIXES = ("xoxb-", "xoxe.xoxb-")
_APP_PREFIX = "xapp-"
_WHERE = {
    "SLACK_BOT_TOKEN": "It starts with xoxb- and stands at api.slack.com/apps, your app, OAuth & Permissions.",
    "SLACK_APP_TOKEN": (
        "It starts with xapp- and is made at api.slack.com/apps, your app, Basic Information, App-Level Tokens, "
        "with the scope connections:write."
    ),
}


@dataclass(frozen=True, slots=True)
class SlackAccess:
    """Where the workspace is and what opens it. Its repr shows no token."""

    api_url: str
    """Base address of the Web API, ending in a slash."""
    bot_token: str = field(repr=False)
    app_token: str = field(repr=False)
    local: bool
    """Whether it is the local workspace of this machine."""


@dataclass(frozen=True, slots=True)
class BotSettings:
    """What the bot needs to know. Its repr shows no token and no address with a password."""

    slack: SlackAccess | None
    """None where no token is configured: then the local workspace is meant."""
    runner: RunnerSettings = field(repr=False)
    """Redis, state folder and projects folder, as every other part reads them."""


def load_bot_settings(environ: Mapping[str, str] = os.environ) -> BotSettings:
    """Read the environment.

    Raises:
        UnavailableError: A variable is missing beside another one, or holds something that cannot be meant.
    """
    return BotSettings(slack=_slack_access(environ), runner=load_settings(environ))


def find_workspace(state_dir: Path, *, wait_s: float = 30.0) -> SlackAccess:
    """Wait for the local workspace's address.

    Args:
        state_dir: The state folder of this machine.
        wait_s: Longest wait in seconds.

    Raises:
        UnavailableError: No usable address is there in time.
    """
    path = state_dir / WORKSPACE_FILE
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _read_workspace(path)
        except FileNotFoundError:
            finding = "does not exist"
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Also met while the workspace is just writing it, so it is read again until the time is over.
            finding = f"cannot be used ({type(error).__name__}: {error})"
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"There is no SLACK_BOT_TOKEN and no local workspace: {path} {finding}.",
                hint=(
                    "Start `python -m bot.workspace`, or set SLACK_BOT_TOKEN and SLACK_APP_TOKEN for a real one. "
                    + _WHERE["SLACK_BOT_TOKEN"]
                ),
            )
        time.sleep(POLL_S)


def _read_workspace(path: Path) -> SlackAccess:
    content = json.loads(path.read_text(encoding="utf-8"))
    return SlackAccess(
        api_url=_with_slash(str(content["api_url"])),
        bot_token=str(content["bot_token"]),
        app_token=str(content["app_token"]),
        local=True,
    )


def _slack_access(environ: Mapping[str, str]) -> SlackAccess | None:
    bot_token, app_token = environ.get("SLACK_BOT_TOKEN", "").strip(), environ.get("SLACK_APP_TOKEN", "").strip()
    if not bot_token and not app_token:
        return None
    if bot_token.startswith(_APP_PREFIX) and app_token.startswith(_BOT_PREFIXES):
        raise UnavailableError(
            "SLACK_BOT_TOKEN and SLACK_APP_TOKEN are swapped.",
            hint="The bot token starts with xoxb-, the app token with xapp-.",
        )
    for name, token, prefixes in (
        ("SLACK_BOT_TOKEN", bot_token, _BOT_PREFIXES),
        ("SLACK_APP_TOKEN", app_token, (_APP_PREFIX,)),
    ):
        if not token:
            other = "SLACK_APP_TOKEN" if name == "SLACK_BOT_TOKEN" else "SLACK_BOT_TOKEN"
            raise UnavailableError(f"{other} is set and {name} is not; the bot needs both.", hint=_WHERE[name])
        if not token.startswith(prefixes):
            raise UnavailableError(f"{name} does not hold the kind of token it should.", hint=_WHERE[name])
    api_url = environ.get("SLACK_API_URL", "").strip() or SLACK_API_URL
    if not api_url.startswith(("https://", "http://")):
        raise UnavailableError(f"SLACK_API_URL={api_url!r} is not a web address.", hint=f"Try {SLACK_API_URL}.")
    return SlackAccess(api_url=_with_slash(api_url), bot_token=bot_token, app_token=app_token, local=False)


def _with_slash(url: str) -> str:
    return url if url.endswith("/") else url + "/"
