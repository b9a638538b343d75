from __future__ import annotations

from typing import Any

import pytest

from bot.workspace.arguments import Arguments
from bot.workspace.errors import SlackError
from bot.workspace.interactions import Interactions
from bot.workspace.state import CHANNEL, YOU, WorkspaceState


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state() -> WorkspaceState:
    return WorkspaceState()


@pytest.fixture
def interactions(state: WorkspaceState, clock: Clock) -> Interactions:
    return Interactions(state, clock)


def respond(interactions: Interactions, key: str, text: str = "x", **arguments: Any) -> None:
    interactions.respond(key, Arguments(arguments), {"text": text})


def test_a_response_url_works_five_times(interactions: Interactions, state: WorkspaceState) -> None:
    key, _ = interactions.open(CHANNEL.id, YOU.id)
    for number in range(5):
        respond(interactions, key, str(number))
    with pytest.raises(SlackError, match="used_url"):
        respond(interactions, key)
    assert [message.text for message in state.messages(CHANNEL.id)] == ["0", "1", "2", "3", "4"]


def test_a_response_url_works_for_thirty_minutes(interactions: Interactions, clock: Clock) -> None:
    key, _ = interactions.open(CHANNEL.id, YOU.id)
    clock.now += 30 * 60
    respond(interactions, key)
    clock.now += 1
    with pytest.raises(SlackError, match="expired_url"):
        respond(interactions, key)


def test_an_unknown_response_url_is_no_service(interactions: Interactions) -> None:
    with pytest.raises(SlackError, match="no_service"):
        respond(interactions, "nonsense")


def test_a_response_is_ephemeral_unless_it_says_otherwise(interactions: Interactions, state: WorkspaceState) -> None:
    key, _ = interactions.open(CHANNEL.id, YOU.id)
    respond(interactions, key)
    respond(interactions, key, response_type="in_channel")
    assert [message.visible_to for message in state.messages(CHANNEL.id)] == [YOU.id, None]


def test_a_response_can_replace_and_delete_the_one_before(interactions: Interactions, state: WorkspaceState) -> None:
    key, _ = interactions.open(CHANNEL.id, YOU.id)
    respond(interactions, key, "first")
    respond(interactions, key, "second", replace_original=True)
    assert [message.text for message in state.messages(CHANNEL.id)] == ["second"]
    respond(interactions, key, delete_original=True)
    assert state.messages(CHANNEL.id) == []


def test_a_trigger_works_once_and_for_three_seconds(interactions: Interactions, clock: Clock) -> None:
    _, first = interactions.open(CHANNEL.id, YOU.id)
    _, second = interactions.open(CHANNEL.id, YOU.id)
    interactions.use_trigger(first)
    with pytest.raises(SlackError, match="exchanged_trigger_id"):
        interactions.use_trigger(first)
    clock.now += 3.1
    with pytest.raises(SlackError, match="expired_trigger_id"):
        interactions.use_trigger(second)
