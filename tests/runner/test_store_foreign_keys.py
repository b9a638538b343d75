"""Somebody else has written to the Redis of the jobs: what is no job must not hold up those that are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from runner.errors import JobError
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.queue import tickets_waiting
from runner.reconciler import reconcile
from runner.store import Store

Submit = Callable[..., JobRecord]

QUEUES = ("qlora:queue:cpu", "qlora:queue:cpu:U1")
FIRST = -1.0


def _nothing(_client: redis.Redis) -> None:
    """A name in the queue, and no record at all."""


def _a_text(client: redis.Redis) -> None:
    client.set("qlora:job:ghost", "cos\nsystem\n(S'id'\ntR.")


def _an_empty_record(client: redis.Redis) -> None:
    client.hset("qlora:job:ghost", "state", "queued")


def _a_state_that_is_none(client: redis.Redis) -> None:
    fields: dict[Any, Any] = {
        "id": "ghost",
        "state": "ready",
        "pool": "cpu",
        "submitted_by": "U1",
        "number": "1",
        "place": "1",
    }
    client.hset("qlora:job:ghost", mapping=fields)


def _a_record_of_another_name(client: redis.Redis) -> None:
    fields: dict[Any, Any] = {"id": "../x", "state": "queued", "pool": "cpu", "submitted_by": "U1", "number": "1"}
    client.hset("qlora:job:ghost", mapping=fields | {"place": "1"})


def _a_job_of_another_pool(client: redis.Redis) -> None:
    fields: dict[Any, Any] = {
        "id": "ghost",
        "state": "queued",
        "pool": "gpu",
        "submitted_by": "U1",
        "number": "1",
        "place": "1",
    }
    client.hset("qlora:job:ghost", mapping=fields)


GHOSTS = [
    _nothing,
    _a_text,
    _an_empty_record,
    _a_state_that_is_none,
    _a_record_of_another_name,
    _a_job_of_another_pool,
]


@pytest.mark.parametrize("plant", GHOSTS)
def test_a_name_in_the_queue_that_is_no_job_is_passed_over(
    redis_client: redis.Redis,
    store: Store,
    submit_job: Submit,
    some_worker: WorkerInfo,
    plant: Callable[[redis.Redis], None],
) -> None:
    job = submit_job()
    plant(redis_client)
    for queue in QUEUES:
        redis_client.zadd(queue, {"ghost": FIRST})
    redis_client.zadd("qlora:turns:cpu", {"U1": FIRST})

    claim = store.claim("cpu", some_worker)

    assert claim is not None
    assert claim.job.id == job.id
    assert store.claim("cpu", some_worker) is None


@pytest.fixture
def claimed(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> JobRecord:
    """A job that runs."""
    submit_job()
    claim = store.claim("cpu", some_worker)
    assert claim is not None
    return claim.job


@pytest.mark.parametrize("plant", GHOSTS)
def test_what_is_no_job_does_not_keep_the_reconciler_from_its_work(
    redis_client: redis.Redis,
    store: Store,
    broker: RedisBroker,
    claimed: JobRecord,
    plant: Callable[[redis.Redis], None],
) -> None:
    plant(redis_client)
    redis_client.zadd("qlora:queue:cpu", {"ghost": FIRST})
    redis_client.zadd("qlora:leases", {"ghost": 1, claimed.id: 2})
    redis_client.hset("qlora:server", "since", "1")
    store.settled_s()
    redis_client.hset("qlora:server", "since", "1")

    assert [job.id for job in reconcile(store, broker).expired] == [claimed.id]
    assert tickets_waiting(broker, "cpu") == 1
    assert store.get(claimed.id).state is JobState.QUEUED


RECORDS = {
    "no version": {"schema_version": "x"},
    "a negative attempt": {"attempt": "-7"},
    "a spec that is a pickle": {"spec": "cposix\nsystem\n(S'true'\ntR."},
    "bytes that are no text": {"spec": b"\x80\x04\x95"},
    "a spec that leaves the output root": {"spec": "../../etc"},
    "a former job that leaves it": {"retry_of": "../../etc"},
    "a state of its own": {"state": "queued", "priority": "root"},
    "a summary that is none": {"summary": "[]"},
    "a date that is none": {"submitted_at": "9" * 30},
}


def _plant(client: redis.Redis, job_id: str, fields: dict[Any, Any]) -> None:
    spec = json.loads(client.hget(f"qlora:job:{job_id}", "spec") or "")
    if fields.get("spec") == "../../etc":
        spec["project"]["output_directory"] = "../../etc"
        fields = {"spec": json.dumps(spec)}
    client.hset(f"qlora:job:{job_id}", mapping=fields)


@pytest.mark.parametrize("fields", RECORDS.values(), ids=RECORDS)
def test_a_job_whose_record_is_not_one_of_ours_fails_and_the_next_is_claimed(
    redis_client: redis.Redis, store: Store, submit_job: Submit, some_worker: WorkerInfo, fields: dict[Any, Any]
) -> None:
    bad, good = submit_job(), submit_job()
    _plant(redis_client, bad.id, fields)

    claim = store.claim("cpu", some_worker)

    assert claim is not None
    assert claim.job.id == good.id
    assert redis_client.hget(f"qlora:job:{bad.id}", "state") == "failed"
    assert redis_client.hget(f"qlora:job:{bad.id}", "error_code") == "record-invalid"
    assert [job.id for job in store.jobs()] == [good.id]
    with pytest.raises(JobError, match="not one of ours"):
        store.get(bad.id)


def test_planted_switches_workers_and_events_are_passed_over(
    redis_client: redis.Redis, store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    store.announce(some_worker)
    redis_client.rpush(
        f"qlora:job:{job.id}:events", "cposix\nsystem", '{"seq": 2, "attempt": 0, "event": {"kind": "x"}}'
    )
    redis_client.sadd("qlora:workers", "ghost")
    redis_client.set("qlora:worker:ghost", '{"name": "ghost"}')
    redis_client.hset("qlora:drains", "ghost", "[]")
    redis_client.hset("qlora:limits:cpu", "max_running", "many")
    redis_client.set("qlora:freeze", "{")

    assert [stored.event.kind for stored in store.events(job.id)] == ["job_queued"]
    assert store.workers() == [some_worker]
    assert store.drained() == {}
    assert store.limits("cpu").max_running is None
    frozen = store.frozen()
    assert frozen is not None
    assert frozen.reason == "(unreadable)"
