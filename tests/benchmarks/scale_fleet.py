"""Many workers on one Redis, and one that has nothing to do.

A worker of the fleet is real towards Redis: a Dramatiq worker of its own with the product's broker, its own store,
reconciler, announcements, and for each job the attempt's two threads that renew the lease and send events. It differs
in two things: fifty of them share a process, and a job is a pause with events instead of a child that trains.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq

from runner.actors import declare_look_for_work
from runner.attempt_link import AttemptLink
from runner.events import PhaseStarted
from runner.jobs import JobState
from runner.queue import build_broker, issue_ticket, queue_name
from runner.reconciler import Reconciler, look_every_s
from runner.redis_client import build_client
from runner.reports import Phase
from runner.store import Store
from tests.benchmarks.scale_store import POOL, metrics, milliseconds, some_worker, spread, submit, succeeded

PROCESSES = 4
JOB_S = 2.5
"""Seconds of a job: short, so that ten thousand end while one waits. Real ones ask less of Redis each second."""
EVENTS_A_JOB = 8
PROMPT_JOBS = 40
SETTLE_S = 3.0


class FleetWorker:
    """One worker without a training."""

    def __init__(self, url: str, number: int) -> None:
        self.claims: list[tuple[float, float]] = []
        """Of each claim: when it was made, seconds since 1970, and how many milliseconds it took."""
        self.empty = 0
        """Tickets that found nothing."""
        self._store = Store.connect(url)
        self._broker = build_broker(url)
        self._info = some_worker(f"host-{number}:1")
        self._reconciler = Reconciler(self._store, self._broker)
        self._announcer = threading.Thread(target=self._announce, daemon=True)
        declare_look_for_work(self._broker, POOL, self._look)
        self._dramatiq = dramatiq.Worker(self._broker, queues={queue_name(POOL)}, worker_threads=1)
        self._dramatiq.queue_prefetch = 1

    def start(self) -> None:
        self._announcer.start()
        self._reconciler.start()
        self._dramatiq.start()

    def _announce(self) -> None:
        while True:
            self._store.announce(self._info)
            time.sleep(look_every_s(self._store.lease_s))

    def _look(self, pool: str) -> None:
        started = time.perf_counter()
        claim = self._store.claim(pool, self._info)
        took = (time.perf_counter() - started) * 1000
        if claim is None:
            self.empty += 1
            return
        self.claims.append((time.time(), took))
        with AttemptLink(self._store, claim) as link:
            link.send(PhaseStarted(phase=Phase.TRAINING))
            for step in range(1, EVENTS_A_JOB):
                time.sleep(JOB_S / EVENTS_A_JOB)
                link.send(metrics(step))
            link.drain(give_up=lambda: False)
        self._store.finish(claim, succeeded())


def run_share(url: str, first: int, count: int) -> None:
    """One process of the fleet: works until its standard input ends, prints what it saw and is gone."""
    fleet = [FleetWorker(url, number) for number in range(first, first + count)]
    for worker in fleet:
        worker.start()
    print("ready", flush=True)  # noqa: T201 - to the process that measures
    sys.stdin.read()
    claims = [claim for worker in fleet for claim in worker.claims]
    print(json.dumps({"claims": claims, "empty": sum(worker.empty for worker in fleet)}), flush=True)  # noqa: T201 - as above
    os._exit(0)


def measure_fleet(url: str, *, workers: int, jobs: int, users: int) -> dict[str, Any]:
    """First single jobs for a fleet that waits, then many at once."""
    store, broker = Store.connect(url), build_broker(url)
    share = workers // PROCESSES
    fleet = [
        subprocess.Popen(
            (sys.executable, "-m", "tests.benchmarks.scale_fleet", url, str(share * number), str(share)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    for process in fleet:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("a part of the fleet did not start")
    time.sleep(SETTLE_S)
    waits = prompt_claims(store, broker)
    idle = commands_per_s(url, 10.0)

    started = time.time()
    submits = []
    for number in range(jobs):
        submits.append(milliseconds(partial(submit, store, number, users)))
        issue_ticket(broker, POOL)
    submitted_s = time.time() - started
    while store.count([JobState.QUEUED, JobState.RUNNING]):
        if any(process.poll() is not None for process in fleet):
            raise RuntimeError("a part of the fleet has ended before its jobs")
        time.sleep(0.5)
    ended_s = time.time() - started
    answers = [json.loads(process.communicate()[0]) for process in fleet]
    store.close()
    broker.close()
    broker.client.close()
    claims = sorted(tuple(claim) for answer in answers for claim in answer["claims"] if claim[0] >= started)
    return {
        "workers": workers,
        "jobs": jobs,
        "users": users,
        "submit_to_claim_of_an_idle_fleet_p50_ms": round(statistics.median(waits)),
        "submit_to_claim_of_an_idle_fleet_max_ms": round(max(waits)),
        "commands_per_s_of_an_idle_worker": round(idle / workers, 2),
        "submits_per_s": round(jobs / submitted_s),
        **spread("submit_beside_the_fleet", submits),
        "jobs_per_s": round(jobs / ended_s, 1),
        **spread("claim_by_the_fleet", [took for _, took in claims]),
        "tickets_that_found_nothing": sum(answer["empty"] for answer in answers),
        "claims": len(claims),
    }


def prompt_claims(store: Store, broker: Any) -> list[float]:
    """Milliseconds from a submit to its claim, while all workers wait."""
    waits = []
    for number in range(PROMPT_JOBS):
        job = submit(store, number, PROMPT_JOBS)
        issue_ticket(broker, job.pool)
        while (started_at := store.get(job.id).started_at) is None:
            time.sleep(0.02)
        waits.append((started_at - job.submitted_at).total_seconds() * 1000)
    while store.count([JobState.RUNNING]):
        time.sleep(0.2)
    return waits


def measure_idle(url: str, folder: Path, *, watch_s: float) -> dict[str, Any]:
    """Commands of the worker's own process that has nothing to do, those inside scripts counted as well."""
    environ = {"PATH": os.environ["PATH"], "REDIS_URL": url, "QLORA_STATE_DIR": str(folder)}
    client = build_client(url, decode_responses=True)
    # A pool that has had a job, as every worker's has after its first.
    client.sadd("qlora:pools", POOL)
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            (sys.executable, "-m", "runner", "worker", "--pool", POOL), env=environ, stdout=log, stderr=log
        )
    while not client.smembers("qlora:workers"):
        if worker.poll() is not None:
            raise RuntimeError((folder / "worker.log").read_text())
        time.sleep(0.2)
    time.sleep(SETTLE_S)
    before = calls(client)
    time.sleep(watch_s)
    made = {name: count - before.get(name, 0) for name, count in calls(client).items()}
    made["info"] -= 1  # our own
    worker.terminate()
    worker.wait()
    client.close()
    by_command = {name: round(count / watch_s, 2) for name, count in sorted(made.items()) if count}
    return {"watched_s": watch_s, "commands_per_s": round(sum(made.values()) / watch_s, 2), "by_command": by_command}


def commands_per_s(url: str, watch_s: float) -> float:
    client = build_client(url, decode_responses=True)
    before = sum(calls(client).values())
    time.sleep(watch_s)
    made = sum(calls(client).values()) - before - 1
    client.close()
    return made / watch_s


def calls(client: Any) -> dict[str, int]:
    stats: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}


if __name__ == "__main__":
    run_share(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
