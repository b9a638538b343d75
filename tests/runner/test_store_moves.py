"""Every pair of states against the one table, in Redis itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from runner.errors import JobError
from runner.job_events import JobCancelled, JobFailed, JobSucceeded
from runner.jobs import FINAL_STATES, TRANSITIONS, JobRecord, JobState, WorkerInfo
from runner.store import Claim, IllegalMoveError, Store
from tests.examples import SUMMARY

Submit = Callable[..., JobRecord]

MOVES: dict[JobState, Callable[[Store, Claim], JobRecord]] = {
    JobState.QUEUED: lambda store, claim: store.requeue(claim),
    JobState.SUCCEEDED: lambda store, claim: store.finish(claim, JobSucceeded(summary=SUMMARY, adapter_path="a")),
    JobState.FAILED: lambda store, claim: store.finish(claim, JobFailed(code="dataset", message="m")),
    JobState.CANCELLED: lambda store, claim: store.finish(claim, JobCancelled(by="U2")),
}
"""What an attempt can ask for. Its other moves, claim and stop, have tests of their own below."""


def force(store: Store, job: JobRecord, state: JobState) -> None:
    """Put a job into a state behind the store's back, so that no earlier check can stand in for the one tested."""
    old = store.get(job.id).state
    store.client.zrem(f"qlora:jobs:{old}", job.id)
    store.client.zadd(f"qlora:jobs:{state}", {job.id: 1})
    store.client.hset(f"qlora:job:{job.id}", "state", state)


def everything(store: Store) -> dict[Any, Any]:
    """All that Redis holds."""
    return {name: store.client.dump(name) for name in store.client.scan_iter()}


@pytest.fixture
def claim(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> Claim:
    submit_job()
    claim = store.claim(some_worker.pool, some_worker)
    assert claim is not None
    return claim


PAIRS = [(old, new) for old in JobState for new in MOVES]
# A stopping job that is given back becomes cancelled instead; see below.
LEGAL = [(old, new) for old, new in PAIRS if new in TRANSITIONS[old]]
ILLEGAL = [pair for pair in PAIRS if pair not in LEGAL and pair != (JobState.STOPPING, JobState.QUEUED)]


@pytest.mark.parametrize(("old", "new"), LEGAL)
def test_an_attempt_may_make_every_move_of_the_table(store: Store, claim: Claim, old: JobState, new: JobState) -> None:
    force(store, claim.job, old)

    moved = MOVES[new](store, claim)

    assert moved.state is new
    assert store.jobs(states=[new]) == [moved]
    assert store.jobs() == [moved]
    assert (moved.finished_at is not None) is (new in FINAL_STATES)
    assert store.client.zcard("qlora:leases") == 0
    assert len(store.events(claim.job.id)) == 3


@pytest.mark.parametrize(("old", "new"), ILLEGAL)
def test_no_attempt_may_make_any_other_move(store: Store, claim: Claim, old: JobState, new: JobState) -> None:
    force(store, claim.job, old)
    before = everything(store)

    with pytest.raises(IllegalMoveError):
        MOVES[new](store, claim)

    assert everything(store) == before


def lose(store: Store, claim: Claim, *, to: JobState) -> list[JobRecord]:
    """Let the attempt's lease run out, where a former loss decides whether the job goes round or fails."""
    former = {"host": "host-z", "step": 0, "token": "1", "returned": to is JobState.QUEUED}
    store.client.hset(f"qlora:job:{claim.job.id}", "lost_hosts", json.dumps([former]))
    store.client.zadd("qlora:leases", {claim.job.id: 1})
    return store.expire_leases()


RECONCILED = [(old, new) for old in JobState for new in (JobState.QUEUED, JobState.FAILED)]
# A stopping job is over with its attempt, as above.
RECONCILED_LEGAL = [(old, new) for old, new in RECONCILED if new in TRANSITIONS[old] and old is not JobState.STOPPING]
RECONCILED_ILLEGAL = [pair for pair in RECONCILED if pair not in RECONCILED_LEGAL and pair[0] is not JobState.STOPPING]


@pytest.mark.parametrize(("old", "new"), RECONCILED_LEGAL)
def test_the_reconciler_may_make_the_moves_of_the_table(
    store: Store, claim: Claim, old: JobState, new: JobState
) -> None:
    force(store, claim.job, old)

    moved = lose(store, claim, to=new)

    assert [job.state for job in moved] == [new]
    assert store.jobs(states=[new]) == moved
    assert len(store.events(claim.job.id)) == 3


@pytest.mark.parametrize(("old", "new"), RECONCILED_ILLEGAL)
def test_the_reconciler_may_make_no_other_move(store: Store, claim: Claim, old: JobState, new: JobState) -> None:
    force(store, claim.job, old)

    assert lose(store, claim, to=new) == []
    assert store.get(claim.job.id).state is old
    assert len(store.events(claim.job.id)) == 2


@pytest.mark.parametrize("to", [JobState.QUEUED, JobState.FAILED])
def test_a_stopping_job_whose_host_is_lost_becomes_cancelled_however_often_that_was(
    store: Store, claim: Claim, to: JobState
) -> None:
    store.request_stop(claim.job.id, "U2")

    assert [job.state for job in lose(store, claim, to=to)] == [JobState.CANCELLED]


@pytest.mark.parametrize("old", [state for state in JobState if JobState.RUNNING not in TRANSITIONS[state]])
def test_no_worker_may_claim_what_is_not_queued(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, old: JobState
) -> None:
    force(store, submit_job(), old)
    before = everything(store)

    assert store.claim(some_worker.pool, some_worker) is None
    assert everything(store) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (JobState.AWAITING_APPROVAL, JobState.CANCELLED),
        (JobState.QUEUED, JobState.CANCELLED),
        (JobState.RUNNING, JobState.STOPPING),
        (JobState.STOPPING, JobState.STOPPING),
    ],
)
def test_a_stop_leads_every_open_state_to_its_end(
    store: Store, submit_job: Submit, old: JobState, new: JobState
) -> None:
    job = submit_job()
    force(store, job, old)

    assert store.request_stop(job.id, "U2").state is new


@pytest.mark.parametrize("old", sorted(FINAL_STATES))
def test_a_stop_of_a_finished_job_is_refused(store: Store, submit_job: Submit, old: JobState) -> None:
    job = submit_job()
    force(store, job, old)
    before = everything(store)

    with pytest.raises(JobError) as caught:
        store.request_stop(job.id, "U2")

    assert caught.value.code == "job-finished"
    assert everything(store) == before


def test_a_stopping_job_that_is_given_back_becomes_cancelled(store: Store, claim: Claim) -> None:
    store.request_stop(claim.job.id, "U2")

    job = store.requeue(claim)

    assert job.state is JobState.CANCELLED
    last = store.events(job.id)[-1].event
    assert isinstance(last, JobCancelled)
    assert last.by == "U2"


def test_a_running_job_that_is_given_back_takes_its_old_place(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    first, second = submit_job(), submit_job()
    urgent = submit_job(priority="high")
    claims = [store.claim(some_worker.pool, some_worker) for _ in range(2)]
    assert claims[1] is not None
    assert claims[1].job.id == first.id
    third = submit_job()

    given_back = store.requeue(claims[1])

    assert (given_back.submitted_at, given_back.priority) == (first.submitted_at, "normal")
    assert [job.id for job in store.queued(some_worker.pool)] == [first.id, second.id, third.id]
    assert store.get(urgent.id).state is JobState.RUNNING
