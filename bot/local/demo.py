"""The demo: types `/qlora start demo` as a person would and prints the thread as it grows."""

from __future__ import annotations

import subprocess
import sys
import time

from bot.local.parts import Part, require_alive, running_parts, wait_for_file
from bot.workspace.client import WorkspaceClient
from bot.workspace.records import Message
from bot.workspace.terminal import render_message
from runner.embedded_redis import resolve_redis_url
from runner.errors import UnavailableError
from runner.jobs import JobRecord, JobState
from runner.settings import RunnerSettings
from runner.store import Store

COMMAND = "/qlora start demo"
BASE_MODEL = "demo-llama"
"""`base_model` of projects/demo.toml."""
POOL = "local"
"""`compute.pool` of projects/demo.toml."""
READY_S = 60.0
"""How long the parts may take to be ready on a slow machine."""


def build_base_model(settings: RunnerSettings) -> None:
    """Make the demo's base model in the models root unless it is there.

    Raises:
        UnavailableError: It could not be made; carries what was printed.
    """
    folder = settings.models_root / BASE_MODEL
    if (folder / "config.json").exists():
        return
    print(f"Building the demo's base model in {folder} …", flush=True)
    # A process of its own: nothing of torch may be loaded on the bot's side.
    command = (sys.executable, "-m", "runner.training.demo_model", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError("The demo's base model could not be built.", hint=done.stderr.strip()[-2000:])


def wait_until_ready(settings: RunnerSettings, parts: list[Part]) -> tuple[WorkspaceClient, Store]:
    """Wait until the bot is connected to the workspace and a worker has announced itself.

    Raises:
        UnavailableError: A part ended, or it took too long.
    """
    wait_for_file(settings.state_dir / "workspace.json", parts)
    workspace = WorkspaceClient.discover(settings.state_dir)
    wait_for_file(settings.state_dir / "redis.json", parts)
    store = Store.connect(resolve_redis_url(settings), lease_s=settings.lease_s, retention=settings.retention)
    deadline = time.monotonic() + READY_S
    while not (workspace.status()["connections"] and store.workers(POOL)):
        require_alive(parts)
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"The parts were not ready within {READY_S:g} s.", hint=f"Look into {settings.state_dir / 'logs'}."
            )
        time.sleep(0.1)
    return workspace, store


def run_demo(settings: RunnerSettings) -> int:
    """Run one job of the demo project from command to verified adapter.

    Returns:
        The exit status: 0 when the job succeeded, 1 when it did not.

    Raises:
        UnavailableError: The parts cannot be started, or one of them ended.
    """
    started_at = time.monotonic()
    with running_parts(settings) as parts:
        build_base_model(settings)
        workspace, store = wait_until_ready(settings, parts)
        try:
            job = _follow(workspace, store, parts)
        finally:
            store.close()
    if job.state is not JobState.SUCCEEDED:
        print(f"The job {job.id} ended as {job.state}: {job.error_message or ''}", file=sys.stderr)
        return 1
    print("Next: `make run` leaves everything running, and projects/README.md tells how to add a project of your own.")
    print(f"Done in {time.monotonic() - started_at:.0f} s; everything that was started is stopped. The adapter:")
    print(job.adapter_path)
    return 0


def _follow(workspace: WorkspaceClient, store: Store, parts: list[Part]) -> JobRecord:
    """Type the command and print the channel's news until the job's last event stands in its thread."""
    cursor = workspace.changes().cursor
    print(f"\nyou in #qlora: {COMMAND}\n", flush=True)
    workspace.command(COMMAND, wait_s=0)
    news = News()
    job_id: str | None = None
    while True:
        require_alive(parts)
        changes = workspace.changes(cursor, timeout_s=1.0)
        cursor = changes.cursor
        for message in changes.messages:
            news.show(message)
            if message.is_root and message.job_id:
                job_id = message.job_id
        if job_id is None:
            continue
        job = store.get(job_id)
        if job.is_final and news.told(job_id) >= store.events(job_id)[-1].seq:
            return job


class News:
    """Prints messages as they come, and of an edited one what it has become in one line."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._told: dict[str, int] = {}
        self._edited_last = False

    def show(self, message: Message) -> None:
        """Print a new message whole, and an edited one where what it says has changed."""
        payload = (message.metadata or {}).get("event_payload") or {}
        if message.job_id and isinstance(payload.get("seq"), int):
            self._told[message.job_id] = max(self._told.get(message.job_id, 0), payload["seq"])
        before, text = self._shown.get(message.ts), render_message(message)
        self._shown[message.ts] = text
        if before is None:
            print(("\n" if self._edited_last else "") + text, end="\n\n", flush=True)
            self._edited_last = False
        elif before != text and not message.is_root:
            # The root message is edited at every phase, but its milestones are replies and are printed anyway.
            print("  ↻ " + " · ".join(line.strip() for line in text.splitlines()[1:]), flush=True)
            self._edited_last = True

    def told(self, job_id: str) -> int:
        """Number of the job's last event that stands in its thread, 0 while none does."""
        return self._told.get(job_id, 0)
