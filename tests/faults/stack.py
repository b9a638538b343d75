"""A running product, and what a test needs to look at it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bot.local.parts import Part, require_alive
from bot.workspace.client import WorkspaceClient
from bot.workspace.records import Message
from runner.jobs import JobRecord
from runner.settings import RunnerSettings
from runner.store import Store

REPOSITORY = Path(__file__).parents[2]
PARTS: dict[str, tuple[str, ...]] = {
    "redis": ("runner", "redis"),
    "workspace": ("bot.workspace",),
    "bot": ("bot",),
    "runner-1": ("runner", "worker", "--pool", "local", "--name", "runner-1", "--no-canary"),
    "runner-2": ("runner", "worker", "--pool", "local", "--name", "runner-2", "--no-canary"),
}
PATIENCE_S = 600.0
"""How long a slow, busy machine may take for what is waited for; nothing is measured by it."""


@dataclass
class Stack:
    """A running product and what a test needs to look at it."""

    settings: RunnerSettings
    workspace: WorkspaceClient
    store: Store
    parts: list[Part]

    def wait(self, wanted: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {PATIENCE_S:g} s: {what}")
            time.sleep(0.05)

    def start(self, command: str) -> JobRecord:
        """Type a start command and return the job that it made."""
        known = {job.id for job in self.store.jobs(limit=100)}
        self.workspace.command(command, wait_s=0)
        self.wait(lambda: {job.id for job in self.store.jobs(limit=100)} != known, f"{command} makes a job")
        (made,) = {job.id for job in self.store.jobs(limit=100)} - known
        return self.store.get(made)

    def wait_for_event(self, job_id: str, kind: str) -> None:
        def seen() -> bool:
            require_alive([part for part in self.parts if not part.name.startswith("runner")])
            job = self.store.get(job_id)
            kinds = [str(stored.event.kind) for stored in self.store.events(job_id)]
            if job.is_final and kind not in kinds:
                pytest.fail(f"{job_id} is {job.state}: {job.error_message} {job.error_hint}; events {kinds}")
            return kind in kinds

        self.wait(seen, f"{kind} of {job_id}")

    def kinds(self, job_id: str) -> list[str]:
        """Kinds of a job's events so far."""
        return [str(stored.event.kind) for stored in self.store.events(job_id)]

    def restart(self, part: Part) -> None:
        """Stop a part with SIGTERM, as an update does, and start it anew as it was."""
        process = psutil.Process(part.process.pid)
        command, environment = process.cmdline(), process.environ()
        part.process.terminate()
        assert part.process.wait(PATIENCE_S) == 0
        with part.log.open("ab") as output:
            part.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_told(self, job_id: str) -> list[Message]:
        """Wait until the job is over and its last event stands in the thread; returns the thread, root first."""
        self.wait(lambda: self.store.get(job_id).is_final, f"{job_id} ends")
        last = self.store.events(job_id)[-1].seq
        self.wait(lambda: any(_seq(message) == last for message in self.thread(job_id)), "the end is told")
        return self.thread(job_id)

    def thread(self, job_id: str) -> list[Message]:
        root = self.workspace.find_thread(job_id)
        return list(self.workspace.messages(thread_ts=root.ts)) if root else []


def _seq(message: Message) -> int | None:
    payload = (message.metadata or {}).get("event_payload") or {}
    seq = payload.get("seq")
    return seq if isinstance(seq, int) else None
