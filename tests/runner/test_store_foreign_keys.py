"""Somebody else has written to the Redis of the jobs: what is no job must not hold up those that are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from runner.jobs import JobRecord, WorkerInfo
from runner.store import Store

QUEUES = ("qlora:queue:cpu", "qlora:queue:cpu:U1")
FIRST = -1.0


def _nothing(_client: redis.Redis) -> None:
    """A name in the queue, and no record at all."""


def _a_text(client: redis.Redis) -> None:
    client.set("qlora:job:ghost", "cos\nsystem\n(S'id'\ntR.")


def _an_empty_record(client: redis.Redis) -> None:
    client.hset("qlora:job:ghost", "state", "queued")


def _a_state_that_is_none(client: redis.Redis) -> None:
    fields: dict[Any, Any] = {"state": "ready", "pool": "cpu", "submitted_by": "U1", "number": "1", "place": "1"}
    client.hset("qlora:job:ghost", mapping=fields)


def _a_job_of_another_pool(client: redis.Redis) -> None:
    fields: dict[Any, Any] = {"state": "queued", "pool": "gpu", "submitted_by": "U1", "number": "1", "place": "1"}
    client.hset("qlora:job:ghost", mapping=fields)


@pytest.mark.parametrize("plant", [_nothing, _a_text, _an_empty_record, _a_state_that_is_none, _a_job_of_another_pool])
def test_a_name_in_the_queue_that_is_no_job_is_passed_over(
    redis_client: redis.Redis,
    store: Store,
    submit_job: Callable[..., JobRecord],
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
