"""Seconds from a claim to the start of the load and to the first optimizer step, with and without a standby child.

Run it with `make bench`. Real workers on a real Valkey run the demo until its first step, in turn with a cold
`python -m runner train`, whose time counts from its start. The load starts with the phase `tokenizer`: from there on
the base model's files are read. Last, a worker that trains is told to stop while another is free: seconds from its end
to the training's going on.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from bot.local.demo import build_base_model
from runner.embedded_redis import EmbeddedRedis
from runner.jobs import JobState
from runner.projects import load_project
from runner.queue import build_broker, issue_ticket
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.store import Store

ROUNDS = 2
LOAD_LIMIT_S = 1.0
"""What a claim to the start of the load may take with a standby, on two cores."""
LEAST_GAIN = 5.0
"""How many times less that is than a cold start, at least."""
RESUME_LIMIT_S = 15.0
ENDLESS = {"logging_steps": "1", "num_train_epochs": "500", "eval_strategy": "no"}


@dataclass(frozen=True)
class Start:
    """Seconds from a claim, or from the start of a cold process."""

    load_s: float
    step_s: float


def wait(condition: Callable[[], object], within_s: float = 120.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it did not come to hold in time")
        time.sleep(0.05)


class Bench:
    """A Valkey, the demo's model and spec, and workers."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environ = dict(os.environ) | {"REDIS_URL": url, "QLORA_STATE_DIR": str(folder)}
        self.settings: RunnerSettings = load_settings(self.environ)
        build_base_model(self.settings)
        self.spec: RunSpec = load_project(self.settings.projects_dir, "demo", ENDLESS)
        self.store = Store.connect(url)
        self.broker = build_broker(url)

    @contextmanager
    def worker(self, *, standby_mb: int) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that is ready for jobs."""
        log = self.folder / f"worker-{uuid4().hex}.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "runner", "worker", "--pool", self.spec.project.compute.pool, "--no-canary"],
                env=self.environ | {"QLORA_STANDBY_MB": str(standby_mb)},
                stdout=output,
                stderr=output,
            )
        words = [" takes jobs ", *(["standby child is ready"] if standby_mb else [])]
        try:
            wait(lambda: all(word in log.read_text() for word in words))
            yield worker
        finally:
            worker.terminate()
            worker.wait()

    def submit(self) -> str:
        """Queue the demo with a ticket."""
        job = self.store.submit(self.spec, submitted_by="bench", origin={}, request_id=uuid4().hex)
        issue_ticket(self.broker, job.pool)
        return job.id

    def at(self, job_id: str, kind: str, attempt: int = 1, phase: str | None = None) -> datetime | None:
        """When the first such event of an attempt was."""
        for stored in self.store.events(job_id):
            told = getattr(stored.event, "phase", None)
            if stored.attempt == attempt and stored.event.kind == kind and phase in {None, told}:
                return stored.event.at
        return None

    def started(self, *, standby_mb: int) -> Start:
        """One job of a fresh worker, to its first step."""
        with self.worker(standby_mb=standby_mb):
            job_id = self.submit()
            wait(lambda: self.at(job_id, "metrics_logged"))
            self.store.request_stop(job_id, "bench")
            wait(lambda: self.store.get(job_id).state is JobState.CANCELLED)
        claimed = self.at(job_id, "job_claimed")
        load, step = self.at(job_id, "phase_started", phase="tokenizer"), self.at(job_id, "metrics_logged")
        assert claimed is not None and load is not None and step is not None  # noqa: PT018
        return Start((load - claimed).total_seconds(), (step - claimed).total_seconds())

    def cold(self) -> Start:
        """`python -m runner train`, to its first step."""
        settings = [f"{name}={value}" for name, value in ENDLESS.items()]
        began = time.time()
        with subprocess.Popen(
            [sys.executable, "-m", "runner", "train", "demo", *settings, "--json"],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            load_s = 0.0
            for line in process.stdout:
                event = json.loads(line)
                after_s = datetime.fromisoformat(event["at"]).timestamp() - began
                if event.get("phase") == "tokenizer":
                    load_s = after_s
                if event["kind"] == "metrics_logged":
                    process.kill()
                    return Start(load_s, after_s)
        raise RuntimeError("the cold run made no step")

    def handed_over(self) -> float:
        """A worker that trains is told to stop; seconds from its end until a free one trains on."""
        with self.worker(standby_mb=2048) as first:
            job_id = self.submit()
            wait(lambda: self.at(job_id, "metrics_logged"))
            with self.worker(standby_mb=2048):
                first.terminate()
                wait(lambda: self.at(job_id, "metrics_logged", attempt=2))
                back, on = self.at(job_id, "job_requeued"), self.at(job_id, "metrics_logged", attempt=2)
                assert back is not None and on is not None  # noqa: PT018
                self.store.request_stop(job_id, "bench")
                wait(lambda: self.store.get(job_id).state is JobState.CANCELLED)
        return (on - back).total_seconds()


def main() -> int:
    """Measure, print, and exit 1 when a goal is missed."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as server:
        bench = Bench(Path(folder), server.url)
        ways: dict[str, Callable[[], Start]] = {
            "with standby": lambda: bench.started(standby_mb=2048),
            "without": lambda: bench.started(standby_mb=0),
            "cold train": bench.cold,
        }
        rounds = [{name: measure() for name, measure in ways.items()} for _ in range(ROUNDS)]
        resumed_s = bench.handed_over()
    loads = {name: statistics.median(one[name].load_s for one in rounds) for name in ways}
    for name in ways:
        steps = [one[name].step_s for one in rounds]
        print(  # noqa: T201 - a benchmark prints
            f"{name}: load starts after {loads[name]:.2f} s, first step after {statistics.median(steps):.2f} s "
            f"({min(steps):.2f} to {max(steps):.2f}, {ROUNDS} rounds)"
        )
    gain = loads["cold train"] / loads["with standby"]
    print(f"the load starts {gain:.1f} times sooner than cold; handed over and resumed in {resumed_s:.1f} s")  # noqa: T201
    return int(loads["with standby"] > LOAD_LIMIT_S or gain < LEAST_GAIN or resumed_s > RESUME_LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
