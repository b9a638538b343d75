from __future__ import annotations

import pytest
from slack_sdk import WebClient

from bot.workspace.client import WorkspaceClient
from bot.workspace.server import LocalWorkspace
from bot.workspace.state import CHANNEL
from runner.errors import UnavailableError, UsageError


def test_the_control_api_wants_its_token(workspace: LocalWorkspace) -> None:
    with pytest.raises(UsageError, match="The control token is missing or wrong"):
        WorkspaceClient(f"{workspace.url}control/", "wrong").status()


def test_a_cursor_shows_only_what_came_or_changed_since(workspace: LocalWorkspace, web_client: WebClient) -> None:
    first = web_client.chat_postMessage(channel=CHANNEL.id, text="first")["ts"]
    web_client.chat_postMessage(channel=CHANNEL.id, text="second")
    seen = workspace.client.changes()
    web_client.chat_update(channel=CHANNEL.id, ts=first, text="first, edited")
    since = workspace.client.changes(seen.cursor)
    assert [message.text for message in seen.messages] == ["first", "second"]
    assert [message.text for message in since.messages] == ["first, edited"]
    assert workspace.client.changes(since.cursor).messages == ()


def test_a_deletion_is_a_change(workspace: LocalWorkspace, web_client: WebClient) -> None:
    ts = web_client.chat_postMessage(channel=CHANNEL.id, text="gone")["ts"]
    cursor = workspace.client.changes().cursor
    web_client.chat_delete(channel=CHANNEL.id, ts=ts)
    assert [message.deleted for message in workspace.client.changes(cursor).messages] == [True]


def test_changes_of_a_thread_leave_out_the_rest_of_the_channel(
    workspace: LocalWorkspace, web_client: WebClient
) -> None:
    root = web_client.chat_postMessage(channel=CHANNEL.id, text="root")["ts"]
    web_client.chat_postMessage(channel=CHANNEL.id, text="elsewhere")
    web_client.chat_postMessage(channel=CHANNEL.id, text="reply", thread_ts=root)
    assert [message.text for message in workspace.client.changes(thread_ts=root).messages] == ["root", "reply"]


def test_waiting_for_a_message_that_never_comes_ends(workspace: LocalWorkspace) -> None:
    with pytest.raises(TimeoutError, match="No message as wanted"):
        workspace.client.wait_for(lambda _: True, timeout_s=0.1)


def test_a_workspace_that_is_gone_is_unavailable(workspace: LocalWorkspace) -> None:
    client = workspace.client
    workspace.stop()
    with pytest.raises(UnavailableError, match="does not answer"):
        client.status()


def test_a_job_is_found_by_its_metadata_before_its_text(workspace: LocalWorkspace, web_client: WebClient) -> None:
    metadata = {"event_type": "job", "event_payload": {"job_id": "demo-abc12"}}
    web_client.chat_postMessage(channel=CHANNEL.id, text="about demo-abc12 and demo-xyz99")
    root = web_client.chat_postMessage(channel=CHANNEL.id, text="Job", metadata=metadata)["ts"]
    found = workspace.client.find_thread("demo-abc12")
    mentioned = workspace.client.find_thread("demo-xyz99")
    assert found is not None
    assert found.ts == root
    assert mentioned is not None
    assert mentioned.ts != root
    assert workspace.client.find_thread("demo-00000") is None
