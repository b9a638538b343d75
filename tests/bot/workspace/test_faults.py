from __future__ import annotations

from collections.abc import Callable
from urllib.error import URLError

import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.http_retry import RateLimitErrorRetryHandler

from bot.workspace.faults import Fault
from bot.workspace.server import LocalWorkspace

POST = "chat.postMessage"


def texts(workspace: LocalWorkspace) -> list[str]:
    return [message.text for message in workspace.client.messages()]


def outcomes(workspace: LocalWorkspace) -> list[tuple[str, str | None]]:
    return [(call.outcome, call.fault) for call in workspace.client.calls(POST)]


def test_a_429_comes_as_often_as_asked_for_and_is_not_applied(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.client.inject("rate_limited", POST, times=2, retry_after=7)
    for _ in range(2):
        with pytest.raises(SlackApiError) as caught:
            web_client.chat_postMessage(channel="#qlora", text="lost")
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["Retry-After"] == "7"
    web_client.chat_postMessage(channel="#qlora", text="kept")
    assert texts(workspace) == ["kept"]
    assert outcomes(workspace) == [("not_applied", "rate_limited")] * 2 + [("ok", None)]


def test_slack_sdks_own_retry_handler_gets_over_a_429(workspace: LocalWorkspace) -> None:
    retrying = WebClient(
        token=workspace.bot_token, base_url=workspace.api_url, retry_handlers=[RateLimitErrorRetryHandler()]
    )
    workspace.client.inject("rate_limited", POST, retry_after=0)
    retrying.chat_postMessage(channel="#qlora", text="kept")
    assert texts(workspace) == ["kept"]


def test_a_server_error_is_not_applied(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.faults.inject(Fault(kind="server_error", method=POST, status=502))
    with pytest.raises(SlackApiError) as caught:
        web_client.chat_postMessage(channel="#qlora", text="lost")
    assert caught.value.response.status_code == 502
    assert texts(workspace) == []


def test_a_dropped_request_is_not_applied(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.client.inject("dropped_request", POST)
    with pytest.raises((URLError, ConnectionError)):
        web_client.chat_postMessage(channel="#qlora", text="lost")
    assert texts(workspace) == []
    assert outcomes(workspace) == [("not_applied", "dropped_request")]


def test_a_dropped_reply_is_applied_though_the_caller_cannot_know(
    workspace: LocalWorkspace, web_client: WebClient
) -> None:
    workspace.client.inject("dropped_reply", POST)
    with pytest.raises((URLError, ConnectionError)):
        web_client.chat_postMessage(channel="#qlora", text="there")
    assert texts(workspace) == ["there"]
    assert outcomes(workspace) == [("ok", "dropped_reply")]


def test_slack_sdks_default_retry_doubles_a_post_whose_reply_was_dropped(workspace: LocalWorkspace) -> None:
    workspace.client.inject("dropped_reply", POST)
    retrying = WebClient(token=workspace.bot_token, base_url=workspace.api_url)
    retrying.chat_postMessage(channel="#qlora", text="twice")
    assert texts(workspace) == ["twice", "twice"]


def test_a_delayed_call_is_applied(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.client.inject("delayed", POST, delay_s=0.05)
    web_client.chat_postMessage(channel="#qlora", text="late")
    assert outcomes(workspace) == [("ok", "delayed")]
    assert texts(workspace) == ["late"]


def test_a_fault_leaves_other_methods_alone(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.client.inject("server_error", POST)
    assert web_client.auth_test()["ok"]


def test_a_refused_block_type_is_refused_until_cleared(
    workspace: LocalWorkspace, web_client: WebClient, error_of: Callable[..., str]
) -> None:
    plan = [{"type": "plan", "title": "Phases"}]
    workspace.client.refuse_block("plan")
    assert error_of(web_client.chat_postMessage, channel="#qlora", text="x", blocks=plan) == "invalid_blocks"
    workspace.client.clear_faults()
    web_client.chat_postMessage(channel="#qlora", text="x", blocks=plan)
    assert texts(workspace) == ["x"]


def test_the_log_keeps_arguments_order_and_outcome_without_the_token(
    workspace: LocalWorkspace, web_client: WebClient, error_of: Callable[..., str]
) -> None:
    ts = web_client.chat_postMessage(channel="#qlora", text="a")["ts"]
    error_of(web_client.chat_update, channel="#qlora", ts="1.0", text="b")
    first, second = workspace.client.calls()
    assert (first.order, first.method, first.outcome, first.ts) == (1, POST, "ok", ts)
    assert (second.order, second.method, second.outcome) == (2, "chat.update", "message_not_found")
    assert second.arguments == {"channel": "#qlora", "ts": "1.0", "text": "b"}
    assert workspace.client.calls(after=first.order) == (second,)


def test_an_outage_ends_with_address_tokens_and_messages_as_before(
    workspace: LocalWorkspace, web_client: WebClient
) -> None:
    web_client.chat_postMessage(channel="#qlora", text="before")
    workspace.stop()
    with pytest.raises(URLError):
        web_client.chat_postMessage(channel="#qlora", text="lost")
    workspace.start()
    web_client.chat_postMessage(channel="#qlora", text="after")
    assert texts(workspace) == ["before", "after"]
