"""A bot under attack: a workspace, the bot behind a faulty line, a person who types, and what the threads tell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from bot.workspace.client import WorkspaceClient
from runner.errors import UnavailableError
from runner.jobs import JobRecord
from tests.faults.fleet import HERE, PATIENCE_S, POOL, Fleet, wait_until
from tests.faults.line import FaultyLine, through

TYPE_EVERY_S = 20.0
USER = "you"
PROJECT = f"""
name = "typed"
base_model = "nowhere"
output_directory = "typed"
[[traits]]
trait_type = "sums"
[[traits.datasets]]
dataset_id = 1
percentage = 100
[training]
max_steps = 60
save_steps = 10
[compute]
pool = "{POOL}"
"""
CATALOG = '[1]\nname = "sums"\npath = "sums.jsonl"\n'


class SlackSide:
    """Workspace and bot, as a context manager.

    Args:
        fleet: Where the bot's jobs run.
        line: Between the bot and Valkey.
    """

    def __init__(self, fleet: Fleet, line: FaultyLine) -> None:
        self.line = line
        self._fleet = fleet
        self._folder = fleet.folder / "slack"
        self._over = threading.Event()
        self._typist = threading.Thread(target=self._keep_typing, name="typist")
        self._workspace: subprocess.Popen[bytes] | None = None
        self._bot: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.told: list[str] = []
        """Ids of the jobs that the bot has told the person of."""

    def __enter__(self) -> Self:
        projects = self._fleet.projects
        projects.mkdir(parents=True)
        (projects / "typed.toml").write_text(PROJECT)
        (projects / "datasets.toml").write_text(CATALOG)
        (projects / "sums.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n' * 100)
        self._workspace = self._start("workspace", ["bot.workspace"])
        self.people = WorkspaceClient.discover(self._folder, patience_s=PATIENCE_S)
        self.start_bot()
        self.wait_connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_typing()
        for process in (self._bot, self._workspace):
            if process is not None:
                process.kill()
                process.wait()

    def start_bot(self) -> None:
        log = self._fleet.folder / "bot.log"
        self._log_start = len(log.read_text(errors="replace")) if log.exists() else 0
        self._bot = self._start("bot", ["bot"])

    def kill_bot(self) -> None:
        """Kill -9."""
        assert self._bot is not None
        self._bot.send_signal(signal.SIGKILL)
        self._bot.wait()

    def bot_died(self) -> bool:
        """Whether the bot has ended without being asked to; see `Fleet.died` for one that has not come up."""
        if self._bot is None or self._bot.poll() is None:
            return False
        log = (self._fleet.folder / "bot.log").read_text(errors="replace")[self._log_start :]
        if "Listening to /qlora" in log:
            return True
        self.start_bot()
        return False

    def revive_bot(self) -> None:
        """Start the bot again where it has ended by itself, which `Fleet.found_dead` tells."""
        if self.bot_died():
            self._fleet.found_dead.append("the bot ended by itself")
            self.start_bot()

    def wait_connected(self) -> None:
        def connected() -> bool:
            self.revive_bot()
            return bool(self.people.status()["connections"])

        wait_until(connected, "the bot is connected")

    def type_now_and_then(self) -> None:
        """Let the person start a job every `TYPE_EVERY_S` seconds, until `stop_typing`."""
        self._typist.start()

    def type(self) -> None:
        """Let the person start a job; `told` has its id, if the bot has answered."""
        try:
            answer = self.people.command("/qlora start typed", user=USER)
        except UnavailableError:
            return
        texts = [str(answer.acknowledgement), *(message.text for message in answer.messages)]
        self.told += re.findall(r"\btyped-[a-z2-7]{5}\b", " ".join(texts))[:1]

    def stop_typing(self) -> None:
        self._over.set()
        if self._typist.is_alive():
            self._typist.join()

    def wait_until_told(self, jobs: list[JobRecord]) -> None:
        """Wait until the end of every one of these jobs stands in its thread."""
        for job in jobs:
            last = self._fleet.store.events(job.id)[-1].seq
            wait_until(lambda job=job, last=last: last in self.told_in(job.id), f"the end of {job.id} is told")  # type: ignore[misc]

    def told_in(self, job_id: str) -> list[int]:
        """Numbers of the events that have a message in a job's thread, in its order."""
        root = self.people.find_thread(job_id)
        messages = self.people.messages(thread_ts=root.ts) if root else ()
        told = [((message.metadata or {}).get("event_payload") or {}).get("seq") for message in messages[1:]]
        return [seq for seq in told if isinstance(seq, int)]

    def _keep_typing(self) -> None:
        while not self._over.wait(TYPE_EVERY_S):
            self.type()

    def _start(self, name: str, module: list[str]) -> subprocess.Popen[bytes]:
        environ = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": through(self.line, self._fleet.server.url),
            "QLORA_STATE_DIR": str(self._folder),
            "QLORA_PROJECTS_DIR": str(self._fleet.projects),
            "QLORA_LEASE_S": str(self._fleet.lease_s),
        }
        with Path(self._fleet.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *module], env=environ, stdout=log, stderr=log, cwd=HERE.parents[1]
            )


def judge_threads(slack: SlackSide, jobs: list[JobRecord], told: list[str]) -> list[str]:
    """What is wrong with the threads of these jobs, and which of those that a person was told of are not there."""
    wrong = [f"{job_id} was announced and is gone" for job_id in set(told) - {job.id for job in jobs}]
    for job in jobs:
        numbers = slack.told_in(job.id)
        if numbers != sorted(set(numbers)):
            wrong.append(f"the thread of {job.id} tells {numbers}")
    return wrong
