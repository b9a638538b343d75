"""Replies that get lost on the way: the client repeats the step, and the store carries it out once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from runner.errors import JobError
from runner.events import PhaseStarted
from runner.job_events import JobCancelled, JobFailed
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.reports import Phase
from runner.spec import RunSpec
from runner.store import Claim, Store
from tests.faults.line import FaultyLine, port_of, through

Submit = Callable[..., JobRecord]


@pytest.fixture
def line(valkey_url: str) -> Iterator[FaultyLine]:
    with FaultyLine(port_of(valkey_url)) as line:
        yield line


@pytest.fixture
def far_store(store: Store, valkey_url: str, line: FaultyLine) -> Iterator[Store]:
    """The store of `store`, seen through the lossy line."""
    far = Store.connect(through(line, valkey_url), lease_s=store.lease_s)
    yield far
    far.close()


@pytest.fixture
def claim(store: Store, far_store: Store, submit_job: Submit, some_worker: WorkerInfo) -> Claim:
    """A job that is held, after every step has been used once, so that the server knows all scripts."""
    other = submit_job()
    for end in (JobFailed(code="dataset", message="m"), None):
        warm_up = far_store.claim(some_worker.pool, some_worker)
        assert warm_up is not None
        far_store.append(warm_up, PhaseStarted(phase=Phase.VERSIONS))
        if end is None:
            far_store.request_stop(warm_up.job.id, "U1")
        else:
            far_store.requeue(warm_up)
            again = far_store.claim(some_worker.pool, some_worker)
            assert again is not None
            far_store.finish(again, end)
            submit_job()
    assert store.get(other.id).is_final
    submit_job()
    claim = far_store.claim(some_worker.pool, some_worker)
    assert claim is not None
    return claim


def kinds(store: Store, job_id: str) -> list[str]:
    return [stored.event.kind for stored in store.events(job_id)]


@pytest.mark.usefixtures("claim")
def test_a_submit_whose_reply_is_lost_makes_one_job(
    store: Store, far_store: Store, line: FaultyLine, run_spec: RunSpec
) -> None:
    before = len(store.jobs())
    line.lose_reply(b"EVALSHA")

    job = far_store.submit(run_spec, submitted_by="U1", origin={}, request_id="lossy")

    assert line.lost_replies == 1
    assert len(store.jobs()) == before + 1
    assert kinds(store, job.id) == ["job_queued"]


@pytest.mark.usefixtures("claim")
def test_a_claim_whose_reply_is_lost_takes_one_job(
    store: Store, far_store: Store, line: FaultyLine, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    first, second = submit_job(), submit_job()
    line.lose_reply(b"EVALSHA")

    claim = far_store.claim(some_worker.pool, some_worker)

    assert line.lost_replies == 1
    assert claim is not None
    assert (claim.job.id, claim.job.attempt) == (first.id, 1)
    assert store.renew(claim).owned is True
    assert store.get(second.id).state is JobState.QUEUED
    assert kinds(store, first.id) == ["job_queued", "job_claimed"]


def test_an_event_whose_reply_is_lost_is_there_once(
    store: Store, far_store: Store, line: FaultyLine, claim: Claim
) -> None:
    line.lose_reply(b"EVALSHA")

    far_store.append(claim, PhaseStarted(phase=Phase.MODEL))

    assert line.lost_replies == 1
    assert kinds(store, claim.job.id) == ["job_queued", "job_claimed", "phase_started"]


def test_an_end_whose_reply_is_lost_is_there_once(
    store: Store, far_store: Store, line: FaultyLine, claim: Claim
) -> None:
    line.lose_reply(b"EVALSHA")

    ended = far_store.finish(claim, JobFailed(code="dataset", message="m"))

    assert line.lost_replies == 1
    assert ended.state is JobState.FAILED
    assert kinds(store, claim.job.id) == ["job_queued", "job_claimed", "job_failed"]


def test_a_job_given_back_whose_reply_is_lost_is_given_back_once(
    store: Store, far_store: Store, line: FaultyLine, claim: Claim
) -> None:
    line.lose_reply(b"EVALSHA")

    job = far_store.requeue(claim)

    assert line.lost_replies == 1
    assert job.state is JobState.QUEUED
    assert kinds(store, claim.job.id) == ["job_queued", "job_claimed", "job_requeued"]


@pytest.mark.usefixtures("claim")
def test_a_stop_of_a_queued_job_whose_reply_is_lost_is_no_error(
    store: Store, far_store: Store, line: FaultyLine, submit_job: Submit
) -> None:
    job = submit_job()
    line.lose_reply(b"EVALSHA")

    stopped = far_store.request_stop(job.id, "U2")

    assert line.lost_replies == 1
    assert stopped.state is JobState.CANCELLED
    assert isinstance(store.events(job.id)[-1].event, JobCancelled)
    assert kinds(store, job.id) == ["job_queued", "job_cancelled"]
    with pytest.raises(JobError):
        far_store.request_stop(job.id, "U2")
