"""The map of Redis' keys at the top of `runner/store.py`, against what is in Redis in the life of jobs."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from runner import store as store_module
from runner.events import MetricsLogged
from runner.job_events import JobCancelled, JobDeclined, JobFailed, JobSucceeded
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.pools import PoolLimits
from runner.settings import Retention
from runner.store import Claim, Store
from tests.examples import SUMMARY

Submit = Callable[..., JobRecord]

_LINE = re.compile(r"^    (?P<key>\S+) +(?P<type>hash|list|zset|set|string|stream) {2,}\S", re.MULTILINE)
MAP = {found["key"]: found["type"] for found in _LINE.finditer(store_module.__doc__ or "")}


def pattern(key: str) -> re.Pattern[str]:
    """A key of the map as a regular expression; only its last part may hold colons."""
    text = re.sub(r"<\w+>$", ".+", key)
    return re.compile("qlora:" + re.sub(r"<\w+>", "[^:]+", text))


def meant(key: str) -> str:
    """Which line of the map a key belongs to: the one that says most of it."""
    lines = [line for line in MAP if pattern(line).fullmatch(key)]
    assert lines, f"{key} is not in the map at the top of runner/store.py"
    return max(lines, key=lambda line: (line.count(":"), -line.count("<")))


def claim_next(store: Store, worker: WorkerInfo) -> Claim:
    claim = store.claim(worker.pool, worker)
    assert claim is not None
    return claim


@pytest.fixture
def lives(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> set[JobState]:
    """Jobs in every state that a store can lead to, everything that operators set, and a worker; answers the states."""
    store = Store(store.client, retention=Retention(events=100))
    store.set_limits("cpu", PoolLimits(max_running=9, max_queued=99))
    store.announce(some_worker)
    store.settled_s()
    assert store.take_turn("cleaner", 60.0)
    jobs = [submit_job(submitted_by=who) for who in ("U1", "U2", "U1", "U2", "U1", "U2", "U1")]
    succeeding, failing, stopped, lost, given_back = (claim_next(store, some_worker) for _ in range(5))
    for step in range(120):
        store.append(
            succeeding,
            MetricsLogged(step=step, total_steps=120, epoch=1, loss=1, learning_rate=1, tokens_per_s=1, eta_s=1),
        )
    store.finish(succeeding, JobSucceeded(summary=SUMMARY, adapter_path="/out"))
    store.finish(failing, JobFailed(code="dataset", message="m"))
    store.request_stop(stopped.job.id, "U2")
    store.finish(stopped, JobCancelled(by="U2"))
    store.requeue(given_back)
    store.client.zadd("qlora:leases", {lost.job.id: 1})
    assert [job.id for job in store.expire_leases()] == [lost.job.id]
    claim_next(store, some_worker)
    store.request_stop(claim_next(store, some_worker).job.id, "U2")
    store.set_origin(jobs[0].id, {"ts": "1"})
    submit_job(submitted_by="U3")
    store.decline(claim_next(store, some_worker), JobDeclined(reason="data-differs", host="", message="m"))
    store.freeze("maintenance", "ann")
    store.drain("host-b", "ann")
    return {job.state for job in store.jobs(limit=100)}


def test_every_key_that_jobs_leave_in_redis_is_in_the_map_with_its_type(store: Store, lives: set[JobState]) -> None:
    assert lives == set(JobState) - {JobState.AWAITING_APPROVAL}

    found = {key: str(store.client.type(key)) for key in store.client.scan_iter()}

    assert {key: MAP[meant(key)] for key in found} == found


def test_every_key_of_the_map_is_met_in_the_life_of_jobs(store: Store, lives: set[JobState]) -> None:
    assert lives

    met = {meant(str(key)) for key in store.client.scan_iter()}

    assert set(MAP) == met
