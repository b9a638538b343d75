from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient

from bot.app import close_socket_mode
from bot.workspace.__main__ import main
from bot.workspace.client import WorkspaceClient
from runner.errors import UnavailableError

JOB = {"event_type": "qlora_job", "event_payload": {"job_id": "demo-abc12"}}
BUTTON = {"type": "button", "text": {"type": "plain_text", "text": "Stop"}, "action_id": "stop"}


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def process(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m bot.workspace` in a process of its own."""
    command = [sys.executable, "-m", "bot.workspace"]
    environment = {**os.environ, "QLORA_STATE_DIR": str(state_dir)}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - it sets a signal and nothing else
    ) as running:
        yield running
        running.terminate()


def _heed_ctrl_c() -> None:
    # A suite that runs in the background of a shell ignores SIGINT, and its children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def address(process: subprocess.Popen[str], state_dir: Path) -> dict[str, Any]:
    """What the process says of itself, once it answers."""
    WorkspaceClient.discover(state_dir)
    assert process.poll() is None
    address: dict[str, Any] = json.loads((state_dir / "workspace.json").read_text())
    return address


@pytest.fixture
def web_client(address: dict[str, Any]) -> WebClient:
    return WebClient(token=address["bot_token"], base_url=address["api_url"], retry_handlers=[])


def output(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Printed lines without the head lines and their times."""
    lines = capsys.readouterr().out.splitlines()
    return [line.strip() for line in lines if not line.startswith(("qlora  ", "you  "))]


def test_serving_leaves_a_private_address_file_and_takes_it_away_at_the_end(
    process: subprocess.Popen[str], address: dict[str, Any], state_dir: Path
) -> None:
    path = state_dir / "workspace.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert address["pid"] == process.pid
    assert address["bot_token"].startswith("xoxb-local-")
    assert address["app_token"].startswith("xapp-local-")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    assert not path.exists()


def test_a_port_that_is_taken_is_named(
    address: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = address["api_url"].split(":")[2].partition("/")[0]
    monkeypatch.setenv("QLORA_STATE_DIR", str(tmp_path / "other"))
    assert main(["--port", port]) == 1
    assert f"Port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_say_channel_thread_and_click_talk_to_a_real_bot(
    address: dict[str, Any],
    web_client: WebClient,
    state_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = App(client=web_client)

    @app.command("/qlora")
    def start(ack: Any, command: dict[str, Any], client: WebClient) -> None:
        ack()
        blocks: list[dict[str, Any]] = [
            {"type": "section", "text": {"type": "mrkdwn", "text": f"*{command['text']}*"}},
            {"type": "actions", "elements": [BUTTON]},
        ]
        client.chat_postMessage(channel=command["channel_id"], text="Job", blocks=blocks, metadata=JOB)

    @app.action("stop")
    def stop(ack: Any, respond: Any) -> None:
        ack()
        respond("Stopping demo-abc12")

    @app.event("app_mention")
    def mention(event: dict[str, Any], say: Any) -> None:
        say("Still running", thread_ts=event.get("thread_ts", event["ts"]))

    handler = SocketModeHandler(app, address["app_token"])
    handler.connect()  # type: ignore[no-untyped-call] # slack-bolt leaves it untyped
    client = WorkspaceClient.discover(state_dir)
    client.wait_connected()

    assert main(["say", "/qlora start demo"]) == 0
    assert output(capsys) == ["start demo", "[Stop]"]
    assert main(["say", "@qlora status", "--thread", "demo-abc12"]) == 0
    assert output(capsys) == ["Still running"]
    assert main(["click", "demo-abc12", "Stop"]) == 0
    assert output(capsys) == ["Stopping demo-abc12"]
    assert main(["thread", "demo-abc12"]) == 0
    assert output(capsys) == ["start demo", "[Stop]", "@qlora status", "Still running"]
    assert main(["channel"]) == 0
    assert output(capsys) == ["start demo", "[Stop]", "Stopping demo-abc12"]

    close_socket_mode(handler)


def test_thread_follow_prints_what_comes_and_what_changes(web_client: WebClient, state_dir: Path) -> None:
    answer = web_client.chat_postMessage(channel="#qlora", text="step 1\nloss 2", metadata=JOB)
    command = [sys.executable, "-m", "bot.workspace", "thread", "demo-abc12", "--follow"]
    environment = {**os.environ, "QLORA_STATE_DIR": str(state_dir)}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - as above
    ) as follower:
        assert follower.stdout is not None
        seen = [follower.stdout.readline() for _ in range(3)][1:]
        web_client.chat_update(channel=answer["channel"], ts=answer["ts"], text="step 2\nloss 2")
        seen += [follower.stdout.readline() for _ in range(2)][1:]
        web_client.chat_postMessage(channel="#qlora", text="a reply", thread_ts=answer["ts"])
        seen += [follower.stdout.readline() for _ in range(2)][1:]
        follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=20) == 0
    assert [line.strip() for line in seen] == ["step 1", "loss 2", "step 2", "a reply"]


@pytest.mark.usefixtures("address")
def test_a_command_without_a_bot_says_what_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "/qlora status"]) == 1
    assert capsys.readouterr().err == "No bot is connected to the workspace. Start it with `python -m bot`.\n"


@pytest.mark.usefixtures("address")
def test_a_job_without_a_thread_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["thread", "nope-00000"]) == 1
    assert "No thread in #qlora belongs to job 'nope-00000'." in capsys.readouterr().err


@pytest.mark.usefixtures("state_dir")
def test_without_a_workspace_the_commands_say_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["channel", "--patience", "0"]) == 1
    assert "Start everything with `make run`" in capsys.readouterr().err


def test_discovery_waits_for_an_address_that_answers(state_dir: Path) -> None:
    (state_dir / "workspace.json").write_text(json.dumps({"control_url": "http://127.0.0.1:1/", "control_token": "x"}))
    with pytest.raises(UnavailableError, match="No local workspace serves here"):
        WorkspaceClient.discover(state_dir, patience_s=0.3)
