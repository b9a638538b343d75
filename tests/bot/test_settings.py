from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.settings import SlackAccess, find_workspace, load_bot_settings
from runner.errors import UnavailableError

BOT_TOKEN, APP_TOKEN = "xoxb-local-bot", "xapp-local-app"


def test_both_tokens_mean_real_slack() -> None:
    settings = load_bot_settings({"SLACK_BOT_TOKEN": BOT_TOKEN, "SLACK_APP_TOKEN": APP_TOKEN})
    assert settings.slack == SlackAccess("https://slack.com/api/", BOT_TOKEN, APP_TOKEN, local=False)


def test_another_address_gets_its_slash() -> None:
    environment = {
        "SLACK_BOT_TOKEN": BOT_TOKEN,
        "SLACK_APP_TOKEN": APP_TOKEN,
        "SLACK_API_URL": "http://127.0.0.1:1/api",
    }
    slack = load_bot_settings(environment).slack
    assert slack is not None
    assert slack.api_url == "http://127.0.0.1:1/api/"


def test_no_token_means_the_local_workspace() -> None:
    assert load_bot_settings({}).slack is None


@pytest.mark.parametrize(
    ("environment", "message", "hint"),
    [
        ({"SLACK_BOT_TOKEN": BOT_TOKEN}, "SLACK_APP_TOKEN is not", "connections:write"),
        ({"SLACK_APP_TOKEN": APP_TOKEN}, "SLACK_BOT_TOKEN is not", "OAuth & Permissions"),
        ({"SLACK_BOT_TOKEN": APP_TOKEN, "SLACK_APP_TOKEN": BOT_TOKEN}, "are swapped", "xoxb-"),
        ({"SLACK_BOT_TOKEN": "xoxp-local", "SLACK_APP_TOKEN": APP_TOKEN}, "SLACK_BOT_TOKEN", "xoxb-"),
        ({"SLACK_BOT_TOKEN": BOT_TOKEN, "SLACK_APP_TOKEN": "other"}, "SLACK_APP_TOKEN", "xapp-"),
        (
            {"SLACK_BOT_TOKEN": BOT_TOKEN, "SLACK_APP_TOKEN": APP_TOKEN, "SLACK_API_URL": "slack.com"},
            "SLACK_API_URL='slack.com'",
            "https://slack.com/api/",
        ),
    ],
)
def test_what_cannot_be_meant_names_the_variable_and_where_to_get_it(
    environment: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(UnavailableError) as caught:
        load_bot_settings(environment)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert BOT_TOKEN not in str(caught.value)
    assert APP_TOKEN not in str(caught.value)


def test_no_token_is_ever_shown() -> None:
    environment = {
        "SLACK_BOT_TOKEN": BOT_TOKEN,
        "SLACK_APP_TOKEN": APP_TOKEN,
        "REDIS_URL": "redis://:local-password@127.0.0.1:1/0",
    }
    shown = repr(load_bot_settings(environment))
    assert BOT_TOKEN not in shown
    assert APP_TOKEN not in shown
    assert "local-password" not in shown


def test_the_local_workspace_is_found_by_its_file(tmp_path: Path) -> None:
    content = {"api_url": "http://127.0.0.1:1/api/", "bot_token": BOT_TOKEN, "app_token": APP_TOKEN, "pid": 1}
    (tmp_path / "workspace.json").write_text(json.dumps(content))
    expected = SlackAccess("http://127.0.0.1:1/api/", BOT_TOKEN, APP_TOKEN, local=True)
    assert expected == find_workspace(tmp_path, wait_s=0.0)


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_workspace_that_is_not_there_says_how_to_start_one(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "workspace.json").write_text(content)
    with pytest.raises(UnavailableError) as caught:
        find_workspace(tmp_path, wait_s=0.2)
    assert "workspace.json" in caught.value.message
    assert "python -m bot.workspace" in (caught.value.hint or "")
