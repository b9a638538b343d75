"""What a dead worker has left is taken back once, fenced, and only when nothing of its child is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from runner import former_worker
from runner.events import PhaseStarted
from runner.job_events import JobRequeued
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.process_identity import ProcessIdentity
from runner.reports import Phase
from runner.store import Claim, LostLease, Store

Submit = Callable[..., JobRecord]


@pytest.fixture
def claim(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> Claim:
    submit_job()
    claim = store.claim(some_worker.pool, some_worker)
    assert claim is not None
    store.append(claim, PhaseStarted(phase=Phase.MODEL))
    return claim


def test_a_job_that_is_taken_back_has_lost_its_host_and_its_former_attempt_may_write_no_more(
    store: Store, claim: Claim
) -> None:
    job = store.take_back(claim.job.id, claim.token)

    assert job is not None
    assert job.state is JobState.QUEUED
    assert [(lost.host, lost.phase, lost.token) for lost in job.lost_hosts] == [("host-a", "model", claim.token)]
    event = store.events(job.id)[-1].event
    assert isinstance(event, JobRequeued)
    assert event.reason == "host-lost"
    with pytest.raises(LostLease):
        store.append(claim, PhaseStarted(phase=Phase.TRAINING))


def test_taking_back_twice_takes_back_once(store: Store, claim: Claim) -> None:
    first = store.take_back(claim.job.id, claim.token)

    assert store.take_back(claim.job.id, claim.token) == first
    assert len(store.get(claim.job.id).lost_hosts) == 1


def test_what_another_attempt_holds_by_now_is_left_alone(store: Store, claim: Claim, some_worker: WorkerInfo) -> None:
    store.requeue(claim)
    other = store.claim(some_worker.pool, some_worker)
    assert other is not None

    assert store.take_back(claim.job.id, claim.token) is None
    assert store.renew(other).owned


def test_a_job_that_somebody_has_asked_to_stop_is_cancelled(store: Store, claim: Claim) -> None:
    store.request_stop(claim.job.id, "ann")

    job = store.take_back(claim.job.id, claim.token)

    assert job is not None
    assert job.state is JobState.CANCELLED


def test_what_is_left_of_a_child_s_group_is_killed_before_its_job_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(former_worker, "WATCHER_S", 0.1)
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        group = ProcessIdentity.of(leader.pid)
        assert len(group.group()) == 2

        assert former_worker.end_group(group)
        assert group.group() == []


def test_nobody_else_s_processes_are_killed() -> None:
    """The id of the former child is this very process' by now."""
    me = ProcessIdentity.of(os.getpid())
    former = me.model_copy(update={"started": me.started + 1})

    assert former_worker.end_group(former)
