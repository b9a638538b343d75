from __future__ import annotations

from pathlib import Path

import pytest
from slack_sdk import WebClient

from bot.workspace.journal import Journal
from bot.workspace.server import LocalWorkspace
from bot.workspace.state import BOT_USER, CHANNEL, YOU, WorkspaceState
from runner.errors import UnavailableError


def test_a_restarted_workspace_knows_what_it_knew(tmp_path: Path) -> None:
    with LocalWorkspace(state_dir=tmp_path) as first:
        client = WebClient(token=first.bot_token, base_url=first.api_url)
        metadata = {"event_type": "job", "event_payload": {"job_id": "demo-abc12"}}
        root = client.chat_postMessage(channel="#qlora", text="root", metadata=metadata)["ts"]
        client.chat_postMessage(channel="#qlora", text="reply", thread_ts=root)
        gone = client.chat_postMessage(channel="#qlora", text="gone")["ts"]
        client.chat_delete(channel=CHANNEL.id, ts=gone)
        client.chat_update(channel=CHANNEL.id, ts=root, text="edited")
        file = client.files_upload_v2(channel=CHANNEL.id, content="bytes", filename="a.txt", thread_ts=root)["file"]
        first.client.add_user("ann")
        before, cursor = first.client.messages(viewer="ann"), first.client.status()["cursor"]
    with LocalWorkspace(state_dir=tmp_path) as second:
        assert second.client.messages(viewer="ann") == before
        assert second.client.status()["cursor"] == cursor
        assert second.client.file(file["id"]) == b"bytes"
        assert second.client.find_thread("demo-abc12") == before[0]


def test_ephemeral_messages_do_not_outlive_the_process(tmp_path: Path) -> None:
    with LocalWorkspace(state_dir=tmp_path) as first:
        client = WebClient(token=first.bot_token, base_url=first.api_url)
        client.chat_postEphemeral(channel=CHANNEL.id, user=YOU.id, text="psst")
    with LocalWorkspace(state_dir=tmp_path) as second:
        assert second.client.messages() == ()


def test_timestamps_go_on_increasing_though_the_clock_went_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    before = WorkspaceState(journal, clock=lambda: 2000.0).post(CHANNEL.id, BOT_USER.id, text="x")
    journal.close()
    journal = Journal(tmp_path)
    after = WorkspaceState(journal, clock=lambda: 1000.0).post(CHANNEL.id, BOT_USER.id, text="x")
    journal.close()
    assert (before.ts, after.ts) == ("2000.000000", "2000.000001")


def test_half_a_line_at_the_end_is_what_a_crash_leaves_and_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    WorkspaceState(journal).post(CHANNEL.id, BOT_USER.id, text="whole")
    journal.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"kind":"mess')
    journal = Journal(tmp_path)
    state = WorkspaceState(journal)
    state.post(CHANNEL.id, BOT_USER.id, text="next")
    journal.close()
    journal = Journal(tmp_path)
    texts = [message.text for message in WorkspaceState(journal).messages(CHANNEL.id)]
    journal.close()
    assert texts == ["whole", "next"]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    path = tmp_path / "workspace" / "journal.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(UnavailableError, match=f"{path}:1 is not a line of a workspace's journal"):
        LocalWorkspace(state_dir=tmp_path)


def test_two_workspaces_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        LocalWorkspace(state_dir=tmp_path),
        pytest.raises(UnavailableError, match="Another local workspace already uses"),
    ):
        LocalWorkspace(state_dir=tmp_path)
