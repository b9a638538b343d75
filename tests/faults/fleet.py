"""A fleet under attack: a real Valkey, worker processes behind faulty lines, and a log of all that was done to them.

The log is what `tests.faults.invariants` judges by: what happens to an attempt has to have its reason there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import psutil
from dramatiq.brokers.redis import RedisBroker

from runner.embedded_redis import EmbeddedRedis
from runner.errors import JobError
from runner.jobs import JobRecord, JobState, Priority, WorkerInfo
from runner.queue import build_broker, issue_ticket
from runner.redis_client import build_client
from runner.spec import RunSpec
from runner.store import Store
from tests.faults.line import FaultyLine, port_of, through

HERE = Path(__file__).parent
POOL = "cpu"
PATIENCE_S = 240.0
"""How long a slow, busy machine may take for what is waited for; nothing is measured by it."""


def wait_until(holds: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait for a condition, and say which one never came."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)


@dataclass(frozen=True)
class Fault:
    """Something done to a worker that may end its attempts, or to a job."""

    kind: str
    began: float
    """Seconds since 1970."""
    ended: float = float("inf")
    """An attempt that begins later has nothing to do with it."""
    worker: int | None = None
    """Process id."""
    child: int | None = None
    job: str | None = None


@dataclass
class Host:
    """A worker with its line to Valkey."""

    name: str
    line: FaultyLine
    environ: dict[str, str] = field(default_factory=dict)
    """What its worker finds in its environment besides the usual."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


@dataclass
class Fleet:
    """All parts, and what was done to them."""

    folder: Path
    server: EmbeddedRedis
    line: FaultyLine
    """Between those who submit and Valkey."""
    store: Store
    """Nearer to Valkey than everybody else: for looking."""
    requester: Store
    broker: RedisBroker
    lease_s: float
    hosts: dict[str, Host] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    """Ids of the jobs that a requester was told of."""
    faults: list[Fault] = field(default_factory=list)

    found_dead: list[str] = field(default_factory=list)
    """Parts that have ended by themselves and been started again since."""

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def projects(self) -> Path:
        """The projects folder of bot and hosts: a host whose copy differs declines the job."""
        return self.folder / "projects"

    @property
    def diary_path(self) -> Path:
        return self.folder / "diary.jsonl"

    def diary(self) -> list[dict[str, Any]]:
        """What the children say of themselves."""
        if not self.diary_path.exists():
            return []
        return [json.loads(line) for line in self.diary_path.read_text().splitlines()]

    # --- jobs ----------------------------------------------------------------------------------------------------

    def submit(self, spec: RunSpec, *, by: str = "ann", priority: Priority = "normal", ticket: bool = True) -> str:
        job = self.requester.submit(spec, submitted_by=by, origin={}, request_id=uuid4().hex, priority=priority)
        self.accepted.append(job.id)
        if ticket:
            issue_ticket(self.broker, job.pool)
        return job.id

    def stop(self, job_id: str) -> None:
        """Ask for a job's end, as a user does who may come too late."""
        self.faults.append(Fault("stop", time.time(), job=job_id))
        try:
            self.store.request_stop(job_id, "ann")
        except JobError as error:
            if error.code != "job-finished":
                raise

    def job(self, job_id: str) -> JobRecord:
        return self.store.get(job_id)

    def events(self, job_id: str) -> list[Any]:
        return [stored.event for stored in self.store.events(job_id)]

    def kinds(self, job_id: str) -> list[str]:
        return [event.kind for event in self.events(job_id)]

    def queued(self) -> int:
        """How many jobs wait."""
        return self.store.queue_lengths().get(POOL, 0)

    def wait_for(self, job_id: str, kind: str, times: int = 1) -> None:
        wait_until(lambda: self.kinds(job_id).count(kind) >= times, f"{kind} of {job_id}")

    def wait_for_ends(self) -> None:
        """Wait until every accepted job is over."""
        for job_id in self.accepted:
            wait_until(lambda job_id=job_id: self.job(job_id).is_final, f"the end of {job_id}")  # type: ignore[misc]

    def states(self) -> list[JobState]:
        return [self.job(job_id).state for job_id in self.accepted]

    # --- workers -------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a host's worker, for the first time or again."""
        host = self.hosts[name]
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "REDIS_URL": through(host.line, self.server.url),
            "QLORA_STATE_DIR": str(self.folder / name),
            "QLORA_OUTPUT_ROOT": str(self.outputs),
            "QLORA_PROJECTS_DIR": str(self.projects),
            "QLORA_LEASE_S": str(self.lease_s),
            "QLORA_HOST": name,
            **host.environ,
        }
        command = [sys.executable, str(HERE / "scripted_worker.py"), POOL, str(HERE / "scripted_child.py")]
        with (self.folder / f"{name}.log").open("ab") as log:
            host.process = subprocess.Popen(
                [*command, str(self.diary_path)], env=environ, stdout=log, stderr=log, cwd=HERE.parents[1]
            )

    def died(self) -> list[str]:
        """Hosts whose worker has ended without being asked to.

        One that found no Valkey when it started is none of them: it is started again, as its supervisor would.
        """
        ended = [name for name, host in self.hosts.items() if host.process and host.process.poll() is not None]
        for name in [name for name in ended if not self._began_to_work(name)]:
            ended.remove(name)
            self.start(name)
        return ended

    def is_up(self, name: str) -> bool:
        """Whether a host's worker has announced itself since it was started."""
        return self._announced(name) is not None

    def is_idle(self, name: str) -> bool:
        """Whether a host's worker is up and works on nothing."""
        worker = self._announced(name)
        return worker is not None and worker.job_id is None

    def kill(self, name: str) -> None:
        """Kill -9 a worker."""
        self._signal(name, signal.SIGKILL)

    def terminate(self, name: str) -> None:
        """Stop a worker as a deploy does, and wait until it is gone."""
        self._signal(name, signal.SIGTERM)

    def kill_child(self, name: str) -> str | None:
        """Kill -9 the child that runs on a host; returns its run directory, None where there is none."""
        for entry in self.open_attempts():
            if entry["worker"] == self.hosts[name].pid:
                self.faults.append(Fault("kill child", time.time(), child=entry["pid"]))
                try:
                    os.kill(entry["pid"], signal.SIGKILL)
                except ProcessLookupError:  # It has ended since.
                    return None
                return str(entry["run"])
        return None

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Stop a worker's clock, but not that of its child."""
        began, pid = time.time(), self.hosts[name].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self.faults.append(Fault("pause", began, time.time(), worker=pid))
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def cut_off(self, name: str) -> Iterator[None]:
        """Take a host's network away for longer than its lease."""
        began, host = time.time(), self.hosts[name]
        host.line.cut()
        try:
            yield
        finally:
            self.faults.append(Fault("cut off", began, time.time(), worker=host.pid))
            host.line.mend()

    def open_attempts(self) -> list[dict[str, Any]]:
        """Diary entries of the attempts that run now."""
        running: dict[str, dict[str, Any]] = {}
        for entry in self.diary():
            if entry["what"] == "began":
                running[entry["run"]] = entry
            elif entry["what"] != "asked to stop":
                running.pop(entry["run"], None)
        return [entry for entry in running.values() if _runs(entry["pid"])]

    def looked_for_lost_hosts(self) -> Any:
        """When a reconciler has asked last."""
        return self.store.client.hget("qlora:server", "asked")

    # --- Valkey --------------------------------------------------------------------------------------------------

    def kill_valkey(self) -> None:
        """Kill -9 the server; `revive_valkey` starts it again."""
        os.kill(self.server.pid, signal.SIGKILL)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the server the replica of one that is not there: it answers, and refuses every write."""
        client = build_client(self.server.url, decode_responses=True)
        client.config_set("replica-serve-stale-data", "yes")
        client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")
            client.close()

    def request_of(self, step: str) -> bytes:
        """Bytes that stand in every request for one of the store's steps, and in no other."""
        return bytes(self.store._scripts._scripts[step].sha, "ascii")

    def revive_valkey(self) -> None:
        self.server.stop()
        self.server.start()
        _write_through(self.server.url)

    # --- inside --------------------------------------------------------------------------------------------------

    def _began_to_work(self, name: str) -> bool:
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        return f"Worker {name}:{self.hosts[name].pid} takes jobs" in log

    def _announced(self, name: str) -> WorkerInfo | None:
        workers = {worker.name: worker for worker in self.store.workers()}
        return workers.get(f"{name}:{self.hosts[name].pid}")

    def _signal(self, name: str, number: signal.Signals) -> None:
        host = self.hosts[name]
        assert host.process is not None
        self.faults.append(Fault(number.name, time.time(), worker=host.pid))
        host.process.send_signal(number)
        host.process.wait(PATIENCE_S)


def _write_through(url: str) -> None:
    """Let the server answer only what is on its disk (docs/reliability.md)."""
    client = build_client(url, decode_responses=True)
    client.config_set("appendfsync", "always")
    client.close()


@contextmanager
def running_fleet(
    folder: Path, names: list[str], *, lease_s: float, environs: Mapping[str, dict[str, str]] = MappingProxyType({})
) -> Iterator[Fleet]:
    """Start Valkey and a worker a name; everything is stopped again, whatever happens inside.

    Args:
        folder: For all that they write.
        names: Of the hosts.
        lease_s: Of every worker.
        environs: What the workers of some hosts find in their environment besides the usual.
    """
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis(folder / "valkey"))
        _write_through(server.url)
        line = stack.enter_context(FaultyLine(port_of(server.url)))
        broker = build_broker(through(line, server.url))
        stack.callback(broker.client.close)
        stack.callback(broker.close)
        near, far = (Store.connect(url, lease_s=lease_s) for url in (server.url, through(line, server.url)))
        stack.callback(near.close)
        stack.callback(far.close)
        fleet = Fleet(folder, server, line, near, far, broker, lease_s)
        for name in names:
            fleet.hosts[name] = Host(name, stack.enter_context(FaultyLine(port_of(server.url))), environs.get(name, {}))
            stack.callback(_end, fleet.hosts[name])
        for name in names:
            fleet.start(name)
        wait_until(lambda: len(fleet.store.workers()) == len(names), "every worker has announced itself")
        yield fleet


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(host: Host) -> None:
    if host.process is not None:
        host.process.kill()
        host.process.wait()


def scripted_spec(spec: RunSpec, *, steps: int, save_steps: int = 10) -> RunSpec:
    """A spec for the scripted child: so many steps of `scripted_child.STEP_S` seconds."""
    training = spec.project.training.model_copy(update={"max_steps": steps, "save_steps": save_steps})
    project = spec.project.model_copy(update={"training": training})
    return spec.model_copy(update={"project": project})
