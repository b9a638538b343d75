"""`python -m bot` as a process of its own: what it needs, what it costs, how it ends, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bot.delivery import DeliveryStore
from bot.workspace.server import LocalWorkspace
from runner.events import ChildEvent, RunSucceeded
from runner.job_events import JobSucceeded
from runner.jobs import JobRecord, WorkerInfo
from runner.spec import RunSpec
from runner.store import Store

MEMORY_LIMIT = 120 * 1024 * 1024
QUICK_BOT = """
import signal, sys, threading
from pathlib import Path
from bot.app import Bot
from bot.settings import SlackAccess
from runner.queue import build_broker
from runner.store import Store
url, api, bot_token, app_token, projects = sys.argv[1:]
store = Store.connect(url)
with Bot(SlackAccess(api, bot_token, app_token, local=True), store, build_broker(url), Path(projects), hold_s=2.0):
    threading.Event().wait()
"""
"""A bot whose right to report runs out two seconds after a kill, and not fifteen."""


@contextmanager
def _process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def finished_job(
    workspace: LocalWorkspace,
    store: Store,
    demo_spec: RunSpec,
    worker_info: WorkerInfo,
    good_run: tuple[ChildEvent, ...],
) -> JobRecord:
    channel = next(one["id"] for one in workspace.client.status()["channels"] if one["name"] == "qlora")
    store.submit(demo_spec, submitted_by="U0ANN", origin={"channel": channel}, request_id="wish-1")
    claim = store.claim("cpu", worker_info)
    assert claim is not None
    for event in good_run:
        store.append(claim, event)
    last = good_run[-1]
    assert isinstance(last, RunSucceeded)
    return store.finish(claim, JobSucceeded(summary=last.summary, adapter_path="/outputs/demo/adapter"))


def test_the_bot_answers_within_its_memory_and_stops_cleanly(
    workspace: LocalWorkspace, store: Store, valkey_url: str, tmp_path: Path
) -> None:
    assert store.jobs() == []
    access = {"api_url": workspace.api_url, "bot_token": workspace.bot_token, "app_token": workspace.app_token}
    environment = {"REDIS_URL": valkey_url, "QLORA_STATE_DIR": str(tmp_path), "QLORA_PROJECTS_DIR": str(tmp_path)}
    with _process("-m", "bot", **environment) as process:
        # The workspace comes up after the bot, as it may on a machine that starts all parts at once.
        (tmp_path / "workspace.json").write_text(json.dumps(access))
        workspace.client.wait_connected()
        for line in ("status", "jobs", "projects", "versions", "help", "strat demo"):
            answer = workspace.client.command(f"/qlora {line}", wait_s=20.0)
            assert answer.acknowledged
            assert answer.messages
        assert psutil.Process(process.pid).memory_info().rss < MEMORY_LIMIT
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
        assert workspace.bot_token not in output
        assert workspace.app_token not in output


@pytest.mark.parametrize(("kind", "at"), [("delayed", 0), ("dropped_reply", 7)])
def test_a_bot_killed_in_the_middle_of_a_post_loses_and_doubles_nothing(  # noqa: PLR0917 - pytest passes by name
    kind: str,
    at: int,
    workspace: LocalWorkspace,
    finished_job: JobRecord,
    store: Store,
    valkey_url: str,
    tmp_path: Path,
) -> None:
    memory = DeliveryStore(store.client)
    slow = {"delay_s": 1.0} if kind == "delayed" else {}
    access = (workspace.api_url, workspace.bot_token, workspace.app_token)
    if at:
        workspace.client.inject("delayed", "chat.postMessage", times=at, delay_s=0.0)
    workspace.client.inject(kind, "chat.postMessage", **slow)  # type: ignore[arg-type] # the table holds the literals
    with _process("-c", QUICK_BOT, valkey_url, *access, str(tmp_path)) as process:
        _wait_until(lambda: len(memory.recall(finished_job.id).posted) == at, f"{at} posts")
        _wait_until(lambda: memory.recall(finished_job.id).intent is not None, "a post on its way")
        process.kill()
        process.wait()
    with _process("-c", QUICK_BOT, valkey_url, *access, str(tmp_path)):
        _wait_until(lambda: memory.recall(finished_job.id).done, "the whole thread")
    (root,) = [message for message in workspace.client.messages() if message.is_root]
    told = [
        (message.metadata or {})["event_payload"]["seq"] for message in workspace.client.messages(thread_ts=root.ts)
    ]
    assert told == sorted(set(told))
    assert len(told) == len(memory.recall(finished_job.id).posted) == 12


def test_importing_the_app_loads_no_torch() -> None:
    script = "import sys, bot.app; sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'aiohttp')))"
    with _process("-c", script) as process:
        assert process.wait(timeout=30) == 0


def test_the_manifest_is_printed_without_any_settings() -> None:
    with _process("-m", "bot", "manifest") as process:
        output, _ = process.communicate(timeout=30)
    manifest = json.loads(output)
    assert manifest["settings"]["socket_mode_enabled"] is True
    assert manifest["features"]["slash_commands"][0]["command"] == "/qlora"
    assert "chat:write" in manifest["oauth_config"]["scopes"]["bot"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the signal handlers from /proc")
def test_a_bot_that_still_waits_for_redis_stops_at_once(tmp_path: Path) -> None:
    with _process("-m", "bot", QLORA_STATE_DIR=str(tmp_path), QLORA_PROJECTS_DIR=str(tmp_path)) as process:
        # Its interpreter is up once it has a handler for SIGTERM: bit 15, counted from 1.
        status = Path(f"/proc/{process.pid}/status")
        caught = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)
        _wait_until(lambda: bool(int(caught.findall(status.read_text())[0], 16) & 1 << 14), "a handler for SIGTERM")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output


def test_a_refused_token_ends_the_bot_with_what_to_do(
    workspace: LocalWorkspace, valkey_url: str, tmp_path: Path
) -> None:
    environment = {
        "REDIS_URL": valkey_url,
        "QLORA_STATE_DIR": str(tmp_path),
        "SLACK_API_URL": workspace.api_url,
        "SLACK_BOT_TOKEN": "xoxb-local-wrong",
        "SLACK_APP_TOKEN": workspace.app_token,
    }
    with _process("-m", "bot", **environment) as process:
        output, _ = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "invalid_auth" in output
    assert "SLACK_BOT_TOKEN" in output
    assert "Traceback" not in output
    assert "xoxb-local-wrong" not in output


def test_a_refused_app_token_ends_the_bot_with_what_to_do(
    workspace: LocalWorkspace, valkey_url: str, tmp_path: Path
) -> None:
    environment = {
        "REDIS_URL": valkey_url,
        "QLORA_STATE_DIR": str(tmp_path),
        "SLACK_API_URL": workspace.api_url,
        "SLACK_BOT_TOKEN": workspace.bot_token,
        "SLACK_APP_TOKEN": "xapp-local-wrong",
    }
    with _process("-m", "bot", **environment) as process:
        output, _ = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "SLACK_APP_TOKEN" in output
    assert "xapp-local-wrong" not in output
