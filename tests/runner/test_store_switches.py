"""Freeze and drain: nothing new starts, and what runs goes on."""

from __future__ import annotations

from collections.abc import Callable

from dramatiq.brokers.redis import RedisBroker

from runner.job_events import JobFailed
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.queue import tickets_waiting
from runner.reconciler import reconcile
from runner.store import Store

Submit = Callable[..., JobRecord]


def test_nothing_starts_while_frozen_and_what_runs_goes_on(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    running, waiting = submit_job(), submit_job()
    claim = store.claim(some_worker.pool, some_worker)
    assert claim is not None

    freeze = store.freeze("new driver", "ann")

    assert store.frozen() == freeze
    assert (freeze.reason, freeze.by) == ("new driver", "ann")
    assert store.claim(some_worker.pool, some_worker) is None
    assert store.renew(claim).owned is True
    assert store.finish(claim, JobFailed(code="dataset", message="m")).id == running.id
    assert submit_job().state is JobState.QUEUED

    store.unfreeze()

    assert store.frozen() is None
    again = store.claim(some_worker.pool, some_worker)
    assert again is not None
    assert again.job.id == waiting.id


def test_a_claim_whose_answer_was_lost_is_answered_again_while_frozen(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    first = store.claim(some_worker.pool, some_worker, request_id="same")
    store.freeze("new driver", "ann")

    assert store.claim(some_worker.pool, some_worker, request_id="same") == first


def test_no_tickets_are_issued_while_frozen(store: Store, broker: RedisBroker, submit_job: Submit) -> None:
    pool = submit_job().pool
    store.freeze("new driver", "ann")
    assert reconcile(store, broker).tickets == {}

    store.unfreeze()

    assert reconcile(store, broker).tickets == {pool: 1}
    assert tickets_waiting(broker, pool) == 1


def test_a_drained_host_takes_no_job_and_others_do(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    drain = store.drain("host-a", "ann")

    assert store.drained() == {"host-a": drain}
    assert store.claim(some_worker.pool, some_worker) is None
    store.undrain("host-a")
    store.drain("host-b", "ann")
    claim = store.claim(some_worker.pool, some_worker)

    assert claim is not None
    assert claim.job.id == job.id
