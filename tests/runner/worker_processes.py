"""Worker processes as in production, but for the scripted child that stands where the training would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dramatiq.brokers.redis import RedisBroker

from runner.jobs import JobState
from runner.queue import build_broker, issue_ticket
from runner.spec import RunSpec
from runner.store import Store

WORKER = """
import logging, sys
from runner.child import Child, EVENTS_FD, child_environment
from runner.settings import load_settings
from runner.worker import run_worker

logging.basicConfig(level=logging.INFO)
settings = load_settings()

def spawn(run_dir):
    command = [sys.executable, {script!r}, str(run_dir), "--events-fd", str(EVENTS_FD)]
    return Child(command, run_dir, environ=child_environment(settings))

sys.exit(run_worker(settings, pool="cpu", spawn=spawn, **{options!r}))
"""
RESUMING = """
done = max([int(path.parent.name.split("-")[1]) for path in RUN_DIR.parent.glob("attempt-*/checkpoints/*/complete")],
           default=0)
emit("training_started", total_steps=100, resumed_from_step=done, trainable_parameters=1)
if done:
    succeed()
(RUN_DIR / "pid").write_text(str(os.getpid()))
checkpoint(5)
train()
"""


@dataclass
class Workers:
    """Worker processes on one machine, and the store that they share."""

    store: Store
    broker: RedisBroker
    url: str
    folder: Path
    lease_s: float
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, script: Path, *, driver: Path | None = None, host: str | None = None, **options: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker, each on a host of its own unless told otherwise; options are those of `run_worker`."""
        environ = {
            "PATH": f"{driver}:{os.environ['PATH']}" if driver else os.environ["PATH"],
            "REDIS_URL": self.url,
            "QLORA_STATE_DIR": str(self.folder),
            "QLORA_LEASE_S": str(self.lease_s),
            "QLORA_HOST": host or f"host-{len(self.running) + 1}",
        }
        log = (self.folder / f"worker-{len(self.running) + 1}.log").open("wb")
        with log:
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER.format(script=str(script), options=options)],
                env=environ,
                stdout=log,
                stderr=log,
            )
        self.running.append(worker)
        return worker

    def log(self, number: int) -> str:
        """What a worker has logged, counted from 1 in the order of their starts."""
        return (self.folder / f"worker-{number}.log").read_text()

    def submit(self, spec: RunSpec, *, ticket: bool = True) -> str:
        job = self.store.submit(spec, submitted_by="UANN", origin={}, request_id=os.urandom(4).hex())
        if ticket:
            issue_ticket(self.broker, job.pool)
        return job.id

    def state(self, job_id: str) -> JobState:
        return self.store.get(job_id).state

    def kinds(self, job_id: str) -> list[str]:
        return [stored.event.kind for stored in self.store.events(job_id)]


@contextmanager
def worker_processes(url: str, folder: Path, lease_s: float = 120.0) -> Iterator[Workers]:
    broker = build_broker(url)
    workers = Workers(Store.connect(url, lease_s=lease_s), broker, url, folder, lease_s)
    try:
        yield workers
    finally:
        for worker in workers.running:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        broker.close()
        broker.client.close()
        workers.store.close()
