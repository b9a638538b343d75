from __future__ import annotations

import itertools

import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.workspace.rate_limits import RateLimits
from bot.workspace.server import LocalWorkspace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> RateLimits:
    limits = RateLimits(clock)
    limits.enabled = True
    return limits


def test_limits_are_off_by_default() -> None:
    limits = RateLimits()
    assert [limits.wait_before("chat.postMessage", "C1") for _ in range(100)] == [0] * 100


def test_a_channel_takes_one_post_a_second(limits: RateLimits, clock: Clock) -> None:
    assert limits.wait_before("chat.postMessage", "C1") == 0
    clock.now += 0.4
    assert limits.wait_before("chat.postMessage", "C1") == 1
    assert limits.wait_before("chat.postMessage", "C2") == 0
    clock.now += 0.6
    assert limits.wait_before("chat.postMessage", "C1") == 0


def test_updates_are_limited_to_50_a_minute_in_the_workspace(limits: RateLimits, clock: Clock) -> None:
    assert {limits.wait_before("chat.update", f"C{number}") for number in range(50)} == {0}
    clock.now += 12.5
    assert limits.wait_before("chat.update", "C1") == 48
    clock.now += 47.5
    assert limits.wait_before("chat.update", "C1") == 0


def test_the_workspace_answers_429_with_retry_after(workspace: LocalWorkspace, web_client: WebClient) -> None:
    workspace.client.set_rate_limits(True)

    def post_on() -> None:
        for number in itertools.count():
            web_client.chat_postMessage(channel="#qlora", text=str(number))

    with pytest.raises(SlackApiError) as caught:
        post_on()
    assert (caught.value.response.status_code, caught.value.response["error"]) == (429, "ratelimited")
    assert caught.value.response.headers["Retry-After"] == "1"
    assert workspace.client.calls("chat.postMessage")[-1].outcome == "ratelimited"
