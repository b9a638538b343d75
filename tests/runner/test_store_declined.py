"""A host that cannot run a job as it was asked gives it back; others claim it, and this one does not until it can."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runner.events import CheckpointSaved
from runner.job_events import JobCancelled, JobClaimed, JobDeclined, JobQueued
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.store import Claim, LostLease, Store

Submit = Callable[..., JobRecord]
DIFFERS = JobDeclined(reason="data-differs", host="", message="data/sums.jsonl has other content.")


@pytest.fixture
def other(some_worker: WorkerInfo) -> WorkerInfo:
    return some_worker.model_copy(update={"name": "host-b:1", "host": "host-b"})


def claim(store: Store, worker: WorkerInfo) -> Claim:
    claim = store.claim(worker.pool, worker)
    assert claim is not None
    return claim


def test_a_declined_job_is_back_in_its_place_as_if_nobody_had_claimed_it(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, other: WorkerInfo
) -> None:
    job, next_one = submit_job(), submit_job()
    for worker in (some_worker, other):
        store.announce(worker)

    declined = store.decline(claim(store, some_worker), DIFFERS)

    assert declined == job
    assert store.position(job.id) == 1
    assert store.client.scard("qlora:active:cpu") == 0
    assert [type(stored.event) for stored in store.events(job.id)] == [JobQueued, JobClaimed, JobDeclined]
    told = store.events(job.id)[-1].event
    assert isinstance(told, JobDeclined)
    assert (told.host, told.others) == ("host-a", True)
    assert claim(store, some_worker).job.id == next_one.id
    assert store.claim("cpu", some_worker) is None
    assert claim(store, other).job.attempt == 1


def test_the_last_live_worker_that_declines_says_that_nobody_is_left(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, other: WorkerInfo
) -> None:
    job = submit_job()
    elsewhere = other.model_copy(update={"name": "host-c:1", "host": "host-c", "pool": "gpu"})
    for worker in (some_worker, other, elsewhere):
        store.announce(worker)
    store.client.sadd("qlora:workers", "ghost")

    for worker in (some_worker, other):
        store.decline(claim(store, worker), DIFFERS)

    others = [stored.event.others for stored in store.events(job.id) if isinstance(stored.event, JobDeclined)]
    assert others == [True, False]
    assert store.get(job.id).state is JobState.QUEUED


def test_a_host_that_can_run_it_now_claims_it_again(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    store.decline(claim(store, some_worker), DIFFERS)
    assert store.declined_by("host-a") == [job]

    store.readmit(job.id, "host-a")

    assert store.declined_by("host-a") == []
    assert claim(store, some_worker).job.id == job.id


def test_a_job_may_be_declined_for_a_time_that_counts_from_its_coming_into_the_queue(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    assert store.decline(claim(store, some_worker), DIFFERS, for_s=600) is not None
    assert store.claim("cpu", some_worker) is None
    assert store.declined_by("host-a") == []

    store.client.zincrby("qlora:declined:host-a", -601_000_000, job.id)
    store.client.hincrby(f"qlora:job:{job.id}", "submitted_at", -601_000_000)
    claimed = claim(store, some_worker)

    assert store.decline(claimed, DIFFERS, for_s=600) is None
    assert store.renew(claimed).owned
    store.requeue(claimed)
    assert store.decline(claim(store, some_worker), DIFFERS, for_s=600) is not None


def test_a_declined_job_that_ran_before_says_where_that_was(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, other: WorkerInfo
) -> None:
    submit_job()
    first = claim(store, some_worker)
    store.append(first, CheckpointSaved(step=5, path="/out/checkpoint-5"))
    before = store.requeue(first)

    assert store.decline(claim(store, other), DIFFERS) == before
    assert (before.host, before.attempt, before.checkpoint_step) == ("host-a", 1, 5)


def test_declining_twice_is_declining_once_and_a_lost_attempt_declines_nothing(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, other: WorkerInfo
) -> None:
    job = submit_job()
    claimed = claim(store, some_worker)
    assert store.decline(claimed, DIFFERS) == store.decline(claimed, DIFFERS)
    assert len(store.events(job.id)) == 3

    lost = claim(store, other)
    store.requeue(lost)
    with pytest.raises(LostLease):
        store.decline(lost, DIFFERS)


def test_a_stopping_job_that_is_declined_becomes_cancelled_and_leaves_nothing(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, other: WorkerInfo
) -> None:
    job = submit_job()
    store.decline(claim(store, other), DIFFERS)
    claimed = claim(store, some_worker)
    store.request_stop(job.id, "U2")

    cancelled = store.decline(claimed, DIFFERS)

    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    last = store.events(job.id)[-1].event
    assert isinstance(last, JobCancelled)
    assert last.by == "U2"
    assert not store.client.keys("qlora:declined:*")
    assert not store.client.keys("qlora:job:*:declined")
