"""The store under load, one caller at a time: what an operation takes, and whether that grows with finished jobs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import redis

from bot.delivery import DeliveryStore
from bot.reporter import REMEMBERED
from runner.embedded_redis import EmbeddedRedis
from runner.event_lines import parse_event
from runner.events import ChildEvent, MetricsLogged, RunFailed, RunInterrupted, RunSucceeded
from runner.job_events import JobSucceeded
from runner.jobs import JobRecord, WorkerInfo
from runner.projects import load_project
from runner.queue import build_broker
from runner.reconciler import clean, reconcile
from runner.spec import RunSpec
from runner.store import Claim, Store
from tests.examples import SUMMARY

SPEC: RunSpec = load_project(Path("projects"), "support-bot")
POOL = SPEC.project.compute.pool
ROUNDS = 300
FINISHED_JOBS_MEASURED = 20


def some_worker(name: str = "host-1:1") -> WorkerInfo:
    now = datetime.now(UTC)
    return WorkerInfo(
        name=name,
        host=name.partition(":")[0],
        pool=POOL,
        device="NVIDIA H100 80GB",
        stack="current",
        started_at=now,
        last_seen_at=now,
    )


def submit(store: Store, number: int, users: int) -> JobRecord:
    return store.submit(
        SPEC,
        submitted_by=f"U{number % users:08}",
        origin={"channel": "C0123456789"},
        request_id=f"T01.C01.{time.time_ns()}",
    )


def claimed(store: Store) -> Claim:
    claim = store.claim(POOL, some_worker())
    if claim is None:
        raise RuntimeError("nothing is queued")
    return claim


def metrics(step: int, total: int = 3000) -> MetricsLogged:
    return MetricsLogged(
        step=step,
        total_steps=total,
        epoch=step / 1000,
        loss=1.2345678,
        learning_rate=0.00012345,
        grad_norm=0.98765,
        tokens_per_s=12345.67,
        eta_s=1234.5,
        peak_bytes=23_456_789_012,
    )


def succeeded() -> JobSucceeded:
    return JobSucceeded(summary=SUMMARY, adapter_path="/srv/qlora/outputs/support-bot/support-bot-abcde/adapter")


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def spread(name: str, taken_ms: Iterable[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(taken_ms, n=100)
    return {f"{name}_p50_ms": round(cuts[49], 2), f"{name}_p99_ms": round(cuts[98], 2)}


def measure_submit(url: str, *, jobs: int, users: int) -> dict[str, Any]:
    """Jobs submitted one after the other by many users, until all of them wait."""
    store = Store.connect(url)
    started = time.perf_counter()
    taken = [milliseconds(partial(submit, store, number, users)) for number in range(jobs)]
    rate = jobs / (time.perf_counter() - started)
    last = spread("submit_last_thousand", taken[-1000:])
    store.close()
    return {"jobs": jobs, "users": users, "submits_per_s": round(rate), **spread("submit", taken), **last}


def measure_claim(url: str, *, queued: int, users: int) -> dict[str, Any]:
    """Claims with a steady number of queued jobs: each is followed by an end and a new job."""
    store = Store.connect(url)
    for number in range(queued):
        submit(store, number, users)
    taken = []
    for number in range(queued):
        started = time.perf_counter()
        claim = claimed(store)
        taken.append((time.perf_counter() - started) * 1000)
        store.finish(claim, succeeded())
        submit(store, number, users)
    store.close()
    rate = 1000 / statistics.mean(taken)
    return {"queued": queued, "users": users, "claims_per_s": round(rate), **spread("claim", taken)}


# --- memory ----------------------------------------------------------------------------------------------------------


def demo_events(folder: Path) -> list[ChildEvent]:
    """The events of a real training of the demo, in order, without those by which a child ends."""
    environ = {"QLORA_STATE_DIR": str(folder), "PATH": "/usr/bin:/bin"}

    def runner(*arguments: str) -> bytes:
        # What goes wrong is told on our own standard error.
        command = (sys.executable, "-m", "runner", *arguments)
        return subprocess.run(command, check=True, env=environ, stdout=subprocess.PIPE).stdout

    runner("demo-model")
    events: list[Any] = [parse_event(line) for line in runner("train", "demo", "--json").splitlines()]
    return [event for event in events if not isinstance(event, RunSucceeded | RunFailed | RunInterrupted)]


def measure_memory(url: str, folder: Path, *, metrics: int) -> dict[str, Any]:
    """Redis' memory for a finished job: the milestones of the demo's run and many logged steps."""
    history = demo_events(folder)
    steps = [event for event in history if isinstance(event, MetricsLogged)]
    last = history.index(steps[-1])
    store = Store.connect(url)
    # What is there before the first job, scripts and counters among it, is no job's.
    one_job(store, history)
    before = used_bytes(store.client)
    for _ in range(FINISHED_JOBS_MEASURED):
        job = one_job(store, [*history[:last], *repeated(steps, metrics), *history[last:]])
    grown = used_bytes(store.client) - before
    keys = {key: store.client.memory_usage(key, samples=0) or 0 for key in job_keys(store, job)}
    expiring = sum(size for key, size in keys.items() if store.client.ttl(key) > 0)
    figures = {
        "metrics": metrics,
        "milestones": len([event for event in history if not isinstance(event, MetricsLogged)]),
        "events_kept": len(store.events(job)),
        "redis_kb_per_finished_job": round(grown / FINISHED_JOBS_MEASURED / 1000, 2),
        "of_which_expires_within_a_week_kb": round(expiring / 1000, 2),
        "largest_kb": {key.replace(job, "ID"): round(size / 1000, 2) for key, size in keys.items()},
    }
    store.close()
    return figures


def used_bytes(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return int(info["used_memory_dataset"])


def job_keys(store: Store, job_id: str) -> list[str]:
    return sorted(key for key in store.client.scan_iter(count=10_000) if job_id in key)


def repeated(steps: list[MetricsLogged], count: int) -> list[MetricsLogged]:
    return [steps[step % len(steps)].model_copy(update={"step": step, "total_steps": count}) for step in range(count)]


def one_job(store: Store, history: Iterable[ChildEvent]) -> str:
    """A job from submit to success."""
    submit(store, 1, 1)
    claim = claimed(store)
    for event in history:
        store.append(claim, event)
    return store.finish(claim, succeeded()).id


# --- growth ----------------------------------------------------------------------------------------------------------


def measure_growth(url: str, folder: Path, *, few: int, many: int) -> dict[str, Any]:
    """The same operations beside few finished jobs and beside many, in turn, so that both meet the same noise."""
    with EmbeddedRedis(folder / "many") as large:
        stores = [Store.connect(url), Store.connect(large.url)]
        brokers = [build_broker(url), build_broker(large.url)]
        for store, finished in zip(stores, (few, many), strict=True):
            fill(store, finished)
            for number in range(50):
                submit(store, number, 10)
        taken: dict[str, tuple[list[float], list[float]]] = {}
        for number in range(ROUNDS):
            for side, (store, broker) in enumerate(zip(stores, brokers, strict=True)):
                for name, took in operations(store, broker, number).items():
                    taken.setdefault(name, ([], []))[side].append(took)
        cleaned = {"clean_10000_s": round(milliseconds(lambda: clean_old(stores[1], brokers[1])) / 1000, 2)}
        for store, broker in zip(stores, brokers, strict=True):
            store.close()
            broker.close()
            broker.client.close()
    ratios = {
        name: {
            "few_ms": round(statistics.median(sides[0]), 3),
            "many_ms": round(statistics.median(sides[1]), 3),
            "ratio": round(statistics.median(sides[1]) / statistics.median(sides[0]), 2),
        }
        for name, sides in taken.items()
    }
    return {"finished": [few, many], "rounds": ROUNDS, "operations": ratios, **cleaned}


def operations(store: Store, broker: Any, number: int) -> dict[str, float]:
    """Milliseconds of everything that people, workers and reconcilers ask of the store."""
    taken = {"submit": milliseconds(lambda: submit(store, number, 10))}
    started = time.perf_counter()
    claim = claimed(store)
    taken["claim"] = (time.perf_counter() - started) * 1000
    cursor, _ = store.feed(store.latest_news(), 0)
    taken |= {
        "append": milliseconds(lambda: store.append(claim, metrics(number))),
        "renew": milliseconds(lambda: store.renew(claim)),
        "feed": milliseconds(lambda: store.feed(cursor, 0)),
        "events": milliseconds(lambda: store.events(claim.job.id)),
        "requeue": milliseconds(lambda: store.requeue(claim)),
    }
    claim = claimed(store)
    taken |= {
        "position": milliseconds(lambda: store.position(store.queued(POOL)[0].id)),
        "stop": milliseconds(lambda: store.request_stop(claim.job.id, "U1")),
        "finish": milliseconds(lambda: store.finish(claim, succeeded())),
        "jobs (20 newest)": milliseconds(lambda: store.jobs(20)),
        "workers": milliseconds(store.workers),
        "reconcile": milliseconds(lambda: reconcile(store, broker)),
        "clean, nothing old": milliseconds(lambda: clean(store, broker)),
    }
    return taken


def measure_restart(url: str, *, finished: int) -> dict[str, Any]:
    """What a bot that starts asks before it reports, beside jobs that are over and told."""
    store = Store.connect(url)
    fill(store, finished)
    memory = DeliveryStore(store.client)
    for job_id in store.active_or_recent(datetime.now(UTC) - REMEMBERED):
        memory.finish(job_id, "C0123456789", job_id)
    waiting = submit(store, 1, 1)
    before = commands(store.client)
    started = time.perf_counter()
    store.latest_news()
    left = memory.not_done(store.active_or_recent(datetime.now(UTC) - REMEMBERED))
    took = time.perf_counter() - started
    asked = commands(store.client) - before - 1
    store.close()
    if left != [waiting.id]:
        raise RuntimeError(f"{len(left)} threads were to be looked at")
    return {"finished": finished, "bot_start_s": round(took, 3), "bot_start_commands": asked}


def commands(client: redis.Redis) -> int:
    info: Any = client.info("stats")
    return int(info["total_commands_processed"])


def clean_old(store: Store, broker: Any) -> None:
    """Let ten thousand jobs have ended too long ago, and remove them."""
    oldest: Any = store.client.zrange("qlora:finished", 0, 9_999)
    store.client.zadd("qlora:finished", dict.fromkeys(oldest, 1))
    removed = clean(store, broker)
    if removed != min(10_000, len(oldest)):
        raise RuntimeError(f"{removed} jobs were removed")


def fill(store: Store, count: int) -> None:
    """Finished jobs: one that went the whole way with a few events, and copies of all its keys and entries."""
    first = one_job(store, [metrics(step) for step in range(1, 4)])
    client = store.client
    record: Any = client.hgetall(f"qlora:job:{first}")
    history: Any = client.lrange(f"qlora:job:{first}:events", 0, -1)
    ended_us = int(record["finished_at"])
    with client.pipeline(transaction=False) as pipe:
        for number in range(2, count + 1):
            job = f"support-bot-{number:07}"
            pipe.hset(f"qlora:job:{job}", mapping=record | {"id": job, "number": str(number)})
            pipe.rpush(f"qlora:job:{job}:events", *history)
            pipe.zadd("qlora:jobs:succeeded", {job: number})
            pipe.zadd("qlora:finished", {job: ended_us})
            pipe.zadd("qlora:news", {job: len(history) * number})
            if number % 1000 == 0:
                pipe.execute()
        pipe.hset("qlora:counters", mapping={"number": str(count), "news": str(len(history) * count)})
        pipe.execute()
