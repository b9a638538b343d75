"""What Prometheus may scrape: jobs, queues, attempts, leases and workers, read from Redis at each scrape.

One process is enough for all hosts (`python -m runner metrics`), since all of it stands in Redis. What a scrape costs
depends on what waits and runs, never on how many jobs are over.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import CollectorRegistry

from runner.errors import UnavailableError
from runner.figures import Figures
from runner.jobs import WorkerInfo, WorkerState
from runner.store import Store

_log = logging.getLogger(__name__)

_ENDS = {"job_succeeded": "succeeded", "job_failed": "failed", "job_cancelled": "cancelled"}


class JobsCollector:
    """Reads the store whenever Prometheus asks.

    Args:
        store: With timeouts shorter than those of a scrape.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Any]:
        """Nothing in advance, so that Redis is not asked before the first scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        """Every metric; only `qlora_redis_up`, as 0, while Redis is away."""
        up = GaugeMetricFamily("qlora_redis_up", "Whether Redis answers.")
        try:
            figures, workers = self._store.figures(), self._store.workers()
            drained, frozen = self._store.drained(), self._store.frozen()
        except UnavailableError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _queues(figures)
        yield from _attempts(figures, self._store.lease_s)
        yield from _totals(figures)
        yield _workers(workers, set(drained))
        yield GaugeMetricFamily(
            "qlora_frozen", "Whether a freeze keeps new jobs from starting.", int(frozen is not None)
        )
        yield GaugeMetricFamily("qlora_hosts_drained", "Hosts that take no new jobs.", len(drained))


def _queues(figures: Figures) -> Iterator[Any]:
    jobs = GaugeMetricFamily("qlora_jobs", "Jobs that are not over.", labels=["pool", "state"])
    age = GaugeMetricFamily(
        "qlora_queue_oldest_age_seconds",
        "Time since the submission of the queued job that was submitted first, 0 while none waits.",
        labels=["pool"],
    )
    for pool, of_pool in figures.pools.items():
        states = Counter(job.state for job in of_pool.active)
        for state, count in (
            ("queued", of_pool.queued),
            ("running", states["running"]),
            ("stopping", states["stopping"]),
        ):
            jobs.add_metric([pool, state], count)
        age.add_metric([pool], of_pool.oldest_queued_s or 0.0)
    yield jobs
    yield age


def _attempts(figures: Figures, lease_s: float) -> Iterator[Any]:
    labels = ["pool", "job", "host"]
    lease = GaugeMetricFamily(
        "qlora_lease_age_seconds", "Time since an attempt under way was heard of, by QLORA_LEASE_S.", labels=labels
    )
    speed = GaugeMetricFamily("qlora_tokens_per_second", "Input tokens that a running job trains on.", labels=labels)
    memory = GaugeMetricFamily(
        "qlora_memory_peak_bytes",
        "Most memory that a running job has held: of the GPU, or of a host without.",
        labels=labels,
    )
    progress = GaugeMetricFamily("qlora_progress_ratio", "Steps done of a running job's steps.", labels=labels)
    for pool, of_pool in figures.pools.items():
        for job in of_pool.active:
            values = [pool, job.id, job.host]
            if job.lease_left_s is not None:
                lease.add_metric(values, lease_s - job.lease_left_s)
            if job.tokens_per_s is not None:
                speed.add_metric(values, job.tokens_per_s)
            if job.peak_bytes is not None:
                memory.add_metric(values, job.peak_bytes)
            if job.step is not None and job.total_steps:
                progress.add_metric(values, job.step / job.total_steps)
    yield from (lease, speed, memory, progress)


def _totals(figures: Figures) -> Iterator[Any]:
    submitted = CounterMetricFamily("qlora_jobs_submitted", "Jobs that were queued.", labels=["pool"])
    attempts = CounterMetricFamily("qlora_attempts", "Claims of a job by a worker.", labels=["pool"])
    restarts = CounterMetricFamily(
        "qlora_child_restarts", "Training processes started for a job that had one before.", labels=["pool"]
    )
    recoveries = CounterMetricFamily(
        "qlora_recoveries",
        "Attempts whose job went back to the queue: host-lost, or given back by its worker.",
        labels=["pool", "reason"],
    )
    finished = CounterMetricFamily(
        "qlora_jobs_finished",
        "Jobs that are over, with the error's code where they failed.",
        labels=["pool", "state", "code"],
    )
    claims: Counter[str] = Counter()
    again: Counter[str] = Counter()
    for total, count in figures.totals.items():
        if total.kind == "job_queued":
            submitted.add_metric([total.pool], count)
        elif total.kind == "job_claimed":
            claims[total.pool] += count
            again[total.pool] += count if total.detail == "again" else 0
        elif total.kind == "job_requeued":
            recoveries.add_metric([total.pool, total.detail], count)
        elif total.kind in _ENDS:
            finished.add_metric([total.pool, _ENDS[total.kind], total.detail], count)
    for pool, count in claims.items():
        attempts.add_metric([pool], count)
        restarts.add_metric([pool], again[pool])
    yield from (submitted, attempts, restarts, recoveries, finished)


def _workers(workers: list[WorkerInfo], drained: set[str]) -> Any:
    family = GaugeMetricFamily("qlora_workers", "Live workers by what they do.", labels=["pool", "state"])
    states = Counter((worker.pool, worker.state(drained)) for worker in workers)
    for pool in sorted({pool for pool, _ in states}):
        for state in get_args(WorkerState):
            family.add_metric([pool, state], states[pool, state])
    return family


def serve_metrics(store: Store, host: str, port: int, stop: threading.Event) -> None:
    """Answer scrapes until `stop` is set.

    Raises:
        UnavailableError: Nobody can listen there.
    """
    registry = CollectorRegistry()
    registry.register(JobsCollector(store))  # type: ignore[arg-type, unused-ignore]  # a collector by what it can do
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise UnavailableError(
            f"Metrics cannot be served at {host}:{port}: {error.strerror or error}.",
            hint="Name a free port and an address of this machine: --listen 127.0.0.1:9464.",
        ) from error
    _log.info("Metrics are at http://%s:%d/metrics.", host, port)
    stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()
