from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient

from bot.app import close_socket_mode
from bot.workspace.faults import DisconnectKind
from bot.workspace.records import Answer
from bot.workspace.server import LocalWorkspace
from bot.workspace.state import APP_ID, BOT_USER, CHANNEL, TEAM_ID, YOU
from runner.errors import UsageError

Connect = Callable[..., SocketModeHandler]
Until = Callable[[Callable[[], bool]], None]
MENTION = f"<@{BOT_USER.id}> stop"


def buttons(*labels: str) -> list[dict[str, Any]]:
    elements = [
        {
            "type": "button",
            "text": {"type": "plain_text", "text": label},
            "action_id": label.lower(),
            "value": "demo-abc12",
        }
        for label in labels
    ]
    return [{"type": "actions", "block_id": "controls", "elements": elements}]


def texts(answer: Answer) -> list[str]:
    return [message.text for message in answer.messages]


# --- slash commands --------------------------------------------------------------------------------------------------


def test_a_slash_command_reaches_the_app_with_all_of_slacks_fields(
    workspace: LocalWorkspace, app: App, connect: Connect
) -> None:
    received: list[dict[str, Any]] = []

    @app.command("/qlora")
    def answer(ack: Any, command: dict[str, Any]) -> None:
        received.append(command)
        ack("done")

    connect(app)
    workspace.client.command("/qlora start demo max_steps=3")
    (command,) = received
    assert command["response_url"].startswith(workspace.url)
    assert command["trigger_id"]
    assert command | {"response_url": "", "trigger_id": ""} == {
        "token": "local",
        "team_id": TEAM_ID,
        "team_domain": "local",
        "channel_id": CHANNEL.id,
        "channel_name": "qlora",
        "user_id": YOU.id,
        "user_name": "you",
        "command": "/qlora",
        "text": "start demo max_steps=3",
        "api_app_id": APP_ID,
        "is_enterprise_install": "false",
        "response_url": "",
        "trigger_id": "",
    }


def test_the_acknowledgements_payload_is_an_ephemeral_answer(
    workspace: LocalWorkspace, app: App, connect: Connect
) -> None:
    app.command("/qlora")(lambda ack: ack("running: none"))
    connect(app)
    answer = workspace.client.command("/qlora status")
    assert (answer.acknowledged, texts(answer)) == (True, ["running: none"])
    assert answer.messages[0].visible_to == YOU.id


def test_an_in_channel_answer_is_seen_by_everybody(workspace: LocalWorkspace, app: App, connect: Connect) -> None:
    app.command("/qlora")(lambda ack: ack(text="hello all", response_type="in_channel"))
    connect(app)
    assert workspace.client.command("/qlora hello").messages[0].visible_to is None


def test_what_is_posted_after_an_empty_acknowledgement_is_the_answer(
    workspace: LocalWorkspace, app: App, connect: Connect
) -> None:
    @app.command("/qlora")
    def answer(ack: Any, client: WebClient, command: dict[str, Any]) -> None:
        ack()
        client.chat_postMessage(channel=command["channel_id"], text="Job demo-abc12 is queued")

    connect(app)
    assert texts(workspace.client.command("/qlora start demo")) == ["Job demo-abc12 is queued"]


def test_without_a_connected_bot_a_command_fails_at_once(workspace: LocalWorkspace) -> None:
    answer = workspace.client.command("/qlora status")
    assert (answer.acknowledged, answer.error) == (False, "dispatch_failed")


def test_a_command_that_is_not_acknowledged_in_time_fails() -> None:
    with LocalWorkspace(ack_timeout_s=0.2) as impatient:
        app = App(client=WebClient(token=impatient.bot_token, base_url=impatient.api_url))
        handler = SocketModeHandler(app, impatient.app_token)
        handler.connect()  # type: ignore[no-untyped-call] # slack-bolt leaves it untyped
        impatient.client.wait_connected()
        answer = impatient.client.command("/qlora status")
        close_socket_mode(handler)
    assert (answer.acknowledged, answer.error) == (False, "operation_timeout")


def test_an_acknowledgement_with_blocks_that_slack_refuses_shows_nothing(
    workspace: LocalWorkspace, app: App, connect: Connect
) -> None:
    app.command("/qlora")(lambda ack: ack(blocks=[{"type": "nonsense"}]))
    connect(app)
    answer = workspace.client.command("/qlora status", wait_s=0)
    assert (answer.error, answer.messages) == ("invalid_blocks", ())


def test_an_unknown_user_or_channel_is_named_with_those_there_are(workspace: LocalWorkspace) -> None:
    with pytest.raises(UsageError, match=r"There is no user 'bob'\. There are: you, qlora\."):
        workspace.client.command("/qlora status", user="bob")
    with pytest.raises(UsageError, match=r"There is no channel 'x'\. There are: qlora\."):
        workspace.client.command("/qlora status", channel="x")


# --- clicks and mentions ---------------------------------------------------------------------------------------------


def test_a_click_reaches_the_app_with_its_value_message_and_place(
    workspace: LocalWorkspace, web_client: WebClient, app: App, connect: Connect
) -> None:
    received: list[dict[str, Any]] = []

    @app.action("stop")
    def stop(ack: Any, body: dict[str, Any], respond: Any) -> None:
        received.append(body)
        ack()
        respond("Stopping")

    connect(app)
    root = web_client.chat_postMessage(channel=CHANNEL.id, text="Job", blocks=buttons("Stop", "Versions"))["ts"]
    answer = workspace.client.click(root, "Stop")
    (body,) = received
    assert texts(answer) == ["Stopping"]
    assert body["actions"][0] | {"action_ts": ""} == {
        "type": "button",
        "action_id": "stop",
        "block_id": "controls",
        "text": {"type": "plain_text", "text": "Stop"},
        "value": "demo-abc12",
        "action_ts": "",
    }
    assert body["container"] == {"type": "message", "message_ts": root, "channel_id": CHANNEL.id, "is_ephemeral": False}
    assert (body["user"]["id"], body["message"]["ts"]) == (YOU.id, root)


def test_a_click_can_replace_the_message_it_was_made_on(
    workspace: LocalWorkspace, web_client: WebClient, app: App, connect: Connect
) -> None:
    @app.action("stop")
    def stop(ack: Any, respond: Any) -> None:
        ack()
        respond(text="Stopped", replace_original=True)

    connect(app)
    root = web_client.chat_postMessage(channel=CHANNEL.id, text="Job", blocks=buttons("Stop"))["ts"]
    (message,) = workspace.client.click(root, "stop").messages
    assert (message.ts, message.text, message.blocks) == (root, "Stopped", ())


def test_a_button_that_is_not_there_is_named_with_those_that_are(
    workspace: LocalWorkspace, web_client: WebClient
) -> None:
    root = web_client.chat_postMessage(channel=CHANNEL.id, text="Job", blocks=buttons("Stop"))["ts"]
    with pytest.raises(UsageError, match=r"has no button 'Go'\. Its buttons: stop \[Stop\]\."):
        workspace.client.click(root, "Go")


def test_a_mention_in_a_thread_is_answered_there(
    workspace: LocalWorkspace, web_client: WebClient, app: App, connect: Connect
) -> None:
    @app.event("app_mention")
    def answer(event: dict[str, Any], say: Any) -> None:
        say(f"heard {event['text']}", thread_ts=event["thread_ts"])

    connect(app)
    root = web_client.chat_postMessage(channel=CHANNEL.id, text="Job")["ts"]
    workspace.client.post(MENTION, thread_ts=root)
    reply = workspace.client.wait_for(lambda message: message.text == f"heard {MENTION}")
    assert reply.thread_ts == root


def test_a_mention_waits_for_the_bot_to_connect(
    workspace: LocalWorkspace, app: App, connect: Connect, until: Until
) -> None:
    heard: list[str] = []
    app.event("app_mention")(lambda event: heard.append(event["text"]))
    workspace.client.post(MENTION)
    connect(app)
    until(lambda: heard == [MENTION])


def test_a_message_without_a_mention_is_nobodys_business(workspace: LocalWorkspace, app: App, connect: Connect) -> None:
    heard: list[str] = []
    app.event("app_mention")(lambda event: heard.append(event["text"]))
    app.command("/qlora")(lambda ack: ack("done"))
    connect(app)
    workspace.client.post("just talking")
    workspace.client.command("/qlora status")
    assert heard == []


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_websocket_address_works_once(workspace: LocalWorkspace) -> None:
    url = WebClient(base_url=workspace.api_url).apps_connections_open(app_token=workspace.app_token)["url"]
    path = url.partition(f":{workspace.port}")[2]
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "bG9jYWwgd29ya3NwYWNlIQ==",
    }
    statuses = []
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", workspace.port)
        connection.request("GET", path, headers=headers)
        statuses.append(connection.getresponse().status)
        connection.close()
    assert statuses == [101, 403]


def test_the_app_gets_its_pings_answered(app: App, connect: Connect, until: Until) -> None:
    handler = connect(app)

    def answered() -> bool:
        session = handler.client.current_session
        return session is not None and session.last_ping_pong_time is not None

    until(answered)


def test_each_envelope_goes_to_one_connection_and_all_get_their_turn(
    workspace: LocalWorkspace, app: App, connect: Connect
) -> None:
    heard: list[str] = []

    def listen(app: App, name: str) -> None:
        @app.command("/qlora")
        def answer(ack: Any) -> None:
            heard.append(name)
            ack("done")

        connect(app)

    listen(app, "first")
    listen(App(client=app.client), "second")
    for _ in range(4):
        workspace.client.command("/qlora status")
    assert sorted(heard) == ["first", "first", "second", "second"]


@pytest.mark.parametrize("kind", ["refresh", "warning", "close", "reset"])
def test_the_app_comes_back_after_a_disconnect(
    workspace: LocalWorkspace, app: App, connect: Connect, until: Until, kind: DisconnectKind
) -> None:
    app.command("/qlora")(lambda ack: ack("still here"))
    handler = connect(app)
    assert handler.client.current_session is not None
    before = handler.client.current_session.session_id
    assert workspace.client.disconnect(kind) == 1
    until(lambda: handler.client.session_id() != before)
    workspace.client.wait_connected()
    assert texts(workspace.client.command("/qlora status")) == ["still here"]


def test_what_a_lost_connection_left_unacknowledged_is_delivered_again(
    workspace: LocalWorkspace, app: App, connect: Connect, until: Until
) -> None:
    deliveries: list[str] = []
    again = threading.Event()

    @app.command("/qlora")
    def answer(ack: Any, command: dict[str, Any]) -> None:
        deliveries.append(command["trigger_id"])
        if len(deliveries) == 1:
            again.wait(20)
            return
        ack("second time")
        again.set()

    connect(app)
    with ThreadPoolExecutor() as pool:
        answer_to_come = pool.submit(workspace.client.command, "/qlora status")
        until(lambda: len(deliveries) == 1)
        workspace.client.disconnect("reset")
        assert texts(answer_to_come.result()) == ["second time"]
    assert deliveries[0] == deliveries[1]


def test_the_workspace_takes_no_more_than_ten_connections(
    workspace: LocalWorkspace, error_of: Callable[..., str]
) -> None:
    client = WebClient(base_url=workspace.api_url)
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "bG9jYWwgd29ya3NwYWNlIQ==",
    }
    connections = []
    for _ in range(10):
        path = client.apps_connections_open(app_token=workspace.app_token)["url"].partition(f":{workspace.port}")[2]
        connection = http.client.HTTPConnection("127.0.0.1", workspace.port)
        connection.request("GET", path, headers=headers)
        assert connection.getresponse().status == 101
        connections.append(connection)
    workspace.client.wait_connected(10)
    assert error_of(client.apps_connections_open, app_token=workspace.app_token) == "too_many_websockets"
    for connection in connections:
        connection.close()


# --- modals ----------------------------------------------------------------------------------------------------------


def test_a_command_can_open_a_modal(workspace: LocalWorkspace, app: App, connect: Connect) -> None:
    opened: list[str] = []

    @app.command("/qlora")
    def start(ack: Any, client: WebClient, command: dict[str, Any]) -> None:
        blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": "Which project?"}}]
        view = {"type": "modal", "title": {"type": "plain_text", "text": "Start"}, "blocks": blocks}
        opened.append(client.views_open(trigger_id=command["trigger_id"], view=view)["view"]["type"])
        ack("opened")

    connect(app)
    assert texts(workspace.client.command("/qlora start")) == ["opened"]
    assert opened == ["modal"]
