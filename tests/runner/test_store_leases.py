"""Who holds a job: leases, fencing tokens, races."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from runner.events import CheckpointSaved, PhaseStarted
from runner.job_events import JobCancelled, JobFailed, JobRequeued, JobSucceeded
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.reports import Phase
from runner.store import Claim, LostLease, Store
from tests.examples import SUMMARY

Submit = Callable[..., JobRecord]
Eventually = Callable[..., None]


@pytest.fixture
def brief(store: Store) -> Store:
    """The same store, with leases that have run out as soon as one looks."""
    return Store(store.client, lease_s=0.001)


def claim_by(store: Store, worker: WorkerInfo) -> Claim:
    claim = store.claim(worker.pool, worker)
    assert claim is not None
    return claim


def expired(store: Store) -> list[JobRecord]:
    """What the next call that finds anything moved."""
    moved: list[JobRecord] = []
    while not moved:
        moved = store.expire_leases()
    return moved


def test_two_claimants_get_each_of_fifty_jobs_once(
    valkey_url: str, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    jobs = [submit_job() for _ in range(50)]
    claims: list[Claim] = []
    together = threading.Barrier(2)

    def work() -> None:
        own = Store.connect(valkey_url)
        together.wait()
        claims.extend(iter(lambda: own.claim(some_worker.pool, some_worker), None))
        own.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claim.job.id for claim in claims) == sorted(job.id for job in jobs)
    by_token = [claim.job.id for claim in sorted(claims, key=lambda claim: claim.token)]
    assert by_token == [job.id for job in jobs]
    assert len({claim.token for claim in claims}) == 50


def test_a_claim_that_is_asked_for_again_is_one_claim(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    first, second = submit_job(), submit_job()

    claims = [store.claim(some_worker.pool, some_worker, request_id="same") for _ in range(2)]

    assert claims[0] is not None
    assert claims[0].job.id == first.id
    assert claims[1] == claims[0]
    assert store.get(second.id).state is JobState.QUEUED


def test_a_claim_that_is_asked_for_again_after_its_lease_finds_nothing(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    brief.claim(some_worker.pool, some_worker, request_id="same")
    expired(brief)

    assert store.claim(some_worker.pool, some_worker, request_id="same") is None
    assert store.get(job.id).state is JobState.QUEUED


def test_every_attempt_has_a_greater_token(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    submit_job()
    first = claim_by(store, some_worker)
    store.requeue(first)

    second = claim_by(store, some_worker)

    assert second.token > first.token
    assert second.job.attempt == 2


def test_a_token_does_not_come_again_when_redis_forgets(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    first = claim_by(store, some_worker)
    store.client.flushall()
    submit_job()

    assert claim_by(store, some_worker).token > first.token


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda store, claim: store.append(claim, PhaseStarted(phase=Phase.MODEL)), id="append"),
        pytest.param(
            lambda store, claim: store.finish(claim, JobSucceeded(summary=SUMMARY, adapter_path="a")), id="succeed"
        ),
        pytest.param(lambda store, claim: store.finish(claim, JobFailed(code="c", message="m")), id="fail"),
        pytest.param(lambda store, claim: store.finish(claim, JobCancelled(by="U2")), id="cancel"),
        pytest.param(lambda store, claim: store.requeue(claim), id="requeue"),
    ],
)
def test_an_attempt_that_lost_its_job_can_write_nothing(
    store: Store,
    brief: Store,
    submit_job: Submit,
    some_worker: WorkerInfo,
    write: Callable[[Store, Claim], Any],
) -> None:
    job = submit_job()
    stale = claim_by(brief, some_worker)
    expired(brief)
    claim_by(store, some_worker)
    history = store.events(job.id)

    with pytest.raises(LostLease, match="Attempt 1 no longer holds"):
        write(store, stale)

    assert store.events(job.id) == history
    assert (store.get(job.id).state, store.get(job.id).attempt) == (JobState.RUNNING, 2)


def test_an_attempt_that_lost_its_job_cannot_renew(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    stale = claim_by(brief, some_worker)
    expired(brief)

    assert store.renew(stale).owned is False

    current = claim_by(store, some_worker)

    assert store.renew(stale).owned is False
    assert store.renew(current).owned is True


def test_an_attempt_that_ended_its_job_holds_it_no_more(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    claim = claim_by(store, some_worker)
    store.finish(claim, JobFailed(code="dataset", message="m"))

    assert store.renew(claim).owned is False
    with pytest.raises(LostLease):
        store.requeue(claim)
    with pytest.raises(LostLease):
        store.finish(claim, JobSucceeded(summary=SUMMARY, adapter_path="a"))


def test_the_same_end_twice_is_one_end(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    submit_job()
    claim = claim_by(store, some_worker)
    end = JobFailed(code="dataset", message="m")

    assert store.finish(claim, end) == store.finish(claim, end)
    assert len(store.events(claim.job.id)) == 3


def test_giving_a_job_back_twice_gives_it_back_once(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    submit_job()
    claim = claim_by(store, some_worker)

    assert store.requeue(claim) == store.requeue(claim)
    assert len(store.events(claim.job.id)) == 3


def test_the_same_event_twice_is_one_event_even_with_others_between(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    claim = claim_by(store, some_worker)
    event = PhaseStarted(phase=Phase.MODEL)

    store.append(claim, event)
    store.request_stop(claim.job.id, "U2")
    store.append(claim, event)

    assert [stored.event.kind for stored in store.events(claim.job.id)] == [
        "job_queued",
        "job_claimed",
        "phase_started",
        "stop_requested",
    ]


def test_a_lease_that_holds_is_left_alone(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    submit_job()
    claim = claim_by(store, some_worker)

    assert store.expire_leases() == []
    assert store.get(claim.job.id) == claim.job


def test_a_renewal_saves_a_lease_that_has_run_out(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    claim = claim_by(brief, some_worker)

    assert store.renew(claim).owned is True
    assert store.expire_leases() == []


def test_a_renewal_between_finding_and_expiring_a_lease_saves_it(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    claim = claim_by(brief, some_worker)
    store.renew(claim)

    # The second half of `expire_leases`, for a lease that its first half found to have run out.
    status, _ = store._expire(claim.job.id)

    assert status == "lost"
    assert store.get(claim.job.id) == claim.job


def test_a_job_of_a_silent_host_goes_back_to_its_place(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    first, second = submit_job(), submit_job()
    claim_by(brief, some_worker)

    moved = expired(brief)

    assert moved == [store.get(first.id)]
    assert [job.id for job in store.queued(some_worker.pool)] == [first.id, second.id]
    last = store.events(first.id)[-1]
    assert isinstance(last.event, JobRequeued)
    assert (last.event.reason, last.event.host, last.attempt) == ("host-lost", some_worker.host, 1)


def test_a_stopping_job_of_a_silent_host_becomes_cancelled(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    claim = claim_by(brief, some_worker)
    for step in (10, 20):
        store.append(claim, CheckpointSaved(step=step, path=f"/out/checkpoint-{step}"))
    store.request_stop(job.id, "U2")

    assert [moved.state for moved in expired(brief)] == [JobState.CANCELLED]
    last = store.events(job.id)[-1].event
    assert isinstance(last, JobCancelled)
    assert (last.by, last.step, last.checkpoint) == ("U2", 20, "/out/checkpoint-20")


def test_a_stopping_job_of_a_silent_host_without_a_checkpoint_names_none(
    store: Store, brief: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    claim_by(brief, some_worker)
    store.request_stop(job.id, "U2")
    expired(brief)

    last = store.events(job.id)[-1].event

    assert isinstance(last, JobCancelled)
    assert (last.step, last.checkpoint) == (None, None)


def test_several_reconcilers_at_once_expire_a_lease_once(
    store: Store, brief: Store, valkey_url: str, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    jobs = [submit_job() for _ in range(10)]
    for _ in jobs:
        claim_by(brief, some_worker)
    moved: list[JobRecord] = []
    together = threading.Barrier(4)

    def expire() -> None:
        own = Store.connect(valkey_url)
        together.wait()
        for _ in range(20):
            moved.extend(own.expire_leases())
        own.close()

    threads = [threading.Thread(target=expire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(job.id for job in moved) == sorted(job.id for job in jobs)
    assert all(len(store.events(job.id)) == 3 for job in jobs)
