"""A job that loses its hosts: it goes round, unless it is the job that kills them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runner.events import CheckpointSaved, ChildEvent, PhaseStarted
from runner.job_events import JobFailed, JobRequeued
from runner.jobs import MOST_LOSSES, JobRecord, JobState, WorkerInfo
from runner.reports import Phase
from runner.store import Claim, Store

Lose = Callable[..., JobRecord]

MODEL, TRAINING = PhaseStarted(phase=Phase.MODEL), PhaseStarted(phase=Phase.TRAINING)


@pytest.fixture
def claims() -> list[Claim]:
    """Every attempt that was lost."""
    return []


@pytest.fixture
def lose(store: Store, some_worker: WorkerInfo, claims: list[Claim]) -> Lose:
    """Let a host claim the job, tell some events, and go silent for a lease."""

    def lose(host: str, *events: ChildEvent) -> JobRecord:
        claim = store.claim(some_worker.pool, some_worker.model_copy(update={"host": host}))
        assert claim is not None
        claims.append(claim)
        for event in events:
            store.append(claim, event)
        store.client.zadd("qlora:leases", {claim.job.id: 1})
        [job] = store.expire_leases()
        return job

    return lose


@pytest.fixture(autouse=True)
def job(submit_job: Callable[..., JobRecord]) -> JobRecord:
    return submit_job()


def test_a_second_host_lost_in_the_same_phase_ends_the_job(store: Store, job: JobRecord, lose: Lose) -> None:
    assert lose("gpu-1", MODEL).state is JobState.QUEUED

    ended = lose("gpu-2", MODEL)

    assert (ended.state, ended.error_code) == (JobState.FAILED, "poison-job")
    assert ended.error_message == (
        "Its worker was lost 2 times in phase model, without a newer checkpoint in between: on gpu-1, then on gpu-2."
    )
    assert ended.error_hint is not None
    assert "dmesg" in ended.error_hint
    assert [(lost.host, lost.phase) for lost in ended.lost_hosts] == [("gpu-1", "model"), ("gpu-2", "model")]
    requeued, _, _, last = [stored.event for stored in store.events(job.id)][-4:]
    assert isinstance(requeued, JobRequeued)
    assert (requeued.reason, requeued.host, requeued.phase) == ("host-lost", "gpu-1", Phase.MODEL)
    assert isinstance(last, JobFailed)
    assert (last.code, last.message, last.hint) == ("poison-job", ended.error_message, ended.error_hint)
    assert store.queue_lengths() == {job.pool: 0}


def test_phases_in_between_make_no_difference(lose: Lose) -> None:
    lose("gpu-1", MODEL)
    lose("gpu-2", MODEL, TRAINING)

    assert lose("gpu-1", MODEL).error_code == "poison-job"


def test_hosts_lost_before_the_first_phase_are_lost_in_the_same_place(lose: Lose) -> None:
    lose("gpu-1")

    assert lose("gpu-1").error_message == (
        "Its worker was lost 2 times before its first phase, without a newer checkpoint in between: on gpu-1, then on "
        "gpu-1."
    )


def test_a_job_that_gets_on_may_lose_hosts_in_the_same_phase(store: Store, lose: Lose) -> None:
    lose("gpu-1", TRAINING, CheckpointSaved(step=10, path="/out/checkpoint-10"))

    gone_on = lose("gpu-2", TRAINING, CheckpointSaved(step=20, path="/out/checkpoint-20"))

    assert (gone_on.state, gone_on.checkpoint_step, gone_on.checkpoint) == (JobState.QUEUED, 20, "/out/checkpoint-20")
    requeued = [stored.event for stored in store.events(gone_on.id) if isinstance(stored.event, JobRequeued)]
    # Whoever reads this late, in a history that has been thinned by then, still learns the right step.
    assert [event.step for event in requeued] == [10, 20]
    assert lose("gpu-3", TRAINING).error_code == "poison-job"


def test_a_host_that_was_only_cut_off_does_not_count(store: Store, lose: Lose, claims: list[Claim]) -> None:
    lose("gpu-1", TRAINING)
    assert store.renew(claims[0]).owned is False

    job = lose("gpu-2", TRAINING)

    assert job.state is JobState.QUEUED
    assert [lost.returned for lost in job.lost_hosts] == [True, False]
    assert lose("gpu-3", TRAINING).error_code == "poison-job"


def test_a_worker_that_gives_its_job_back_has_not_lost_it(
    store: Store, job: JobRecord, some_worker: WorkerInfo, lose: Lose
) -> None:
    lose("gpu-1", MODEL)
    for _ in range(3):
        claim = store.claim(some_worker.pool, some_worker)
        assert claim is not None
        store.append(claim, MODEL)
        assert store.requeue(claim).state is JobState.QUEUED

    assert len(store.get(job.id).lost_hosts) == 1


def test_no_job_loses_hosts_for_ever(lose: Lose) -> None:
    for step in range(1, MOST_LOSSES):
        saved = CheckpointSaved(step=step, path=f"/out/checkpoint-{step}")
        assert lose("gpu-1", TRAINING, saved).state is JobState.QUEUED

    ended = lose("gpu-9", TRAINING, CheckpointSaved(step=MOST_LOSSES, path="/out/last"))

    assert (ended.state, ended.error_code) == (JobState.FAILED, "too-many-lost-hosts")
    assert ended.error_message is not None
    assert "lost 20 times" in ended.error_message
    assert ended.error_message.endswith("then on gpu-9.")
