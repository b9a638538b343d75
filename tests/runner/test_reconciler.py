"""What gets lost and is found again: tickets, hosts, and a Redis that was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dramatiq.brokers.redis import RedisBroker

from runner.embedded_redis import EmbeddedRedis
from runner.events import PhaseStarted
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.queue import build_broker, issue_ticket, queue_name, tickets_waiting
from runner.reconciler import Reconciler, clean, reconcile
from runner.redis_client import build_client
from runner.reports import Phase
from runner.spec import RunSpec
from runner.store import Claim, Store

Submit = Callable[..., JobRecord]
Eventually = Callable[..., None]


def test_a_missing_ticket_is_issued_once(store: Store, broker: RedisBroker, submit_job: Submit) -> None:
    pool = submit_job().pool
    submit_job()
    issue_ticket(broker, pool)

    assert reconcile(store, broker).tickets == {pool: 1}
    assert reconcile(store, broker).tickets == {}
    assert tickets_waiting(broker, pool) == 2


def test_a_ticket_that_a_worker_fetched_and_lost_is_issued_again(
    store: Store, broker: RedisBroker, submit_job: Submit
) -> None:
    pool = submit_job().pool
    issue_ticket(broker, pool)
    assert len(broker.do_fetch(queue_name(pool), 1)) == 1

    assert reconcile(store, broker).tickets == {pool: 1}


def test_no_ticket_is_issued_where_nothing_is_queued(
    store: Store, broker: RedisBroker, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    store.claim(some_worker.pool, some_worker)

    assert reconcile(store, broker).tickets == {}


def test_jobs_queued_by_a_version_without_turns_are_claimed_in_their_order_after_an_upgrade(
    store: Store, broker: RedisBroker, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    pool = some_worker.pool
    old = [submit_job(submitted_by="U1"), submit_job(submitted_by="U2")]
    # What such a version leaves: the pool's queue alone.
    store.client.delete(
        f"qlora:queue:{pool}:U1", f"qlora:queue:{pool}:U2", f"qlora:turns:{pool}", f"qlora:seats:{pool}"
    )
    new = submit_job(submitted_by="U3")

    reconcile(store, broker)

    assert [job.id for job in store.queued(pool)] == [new.id, old[0].id, old[1].id]
    claimed = [claim.job.id for _ in range(3) if (claim := store.claim(pool, some_worker))]
    assert claimed == [new.id, old[0].id, old[1].id]


def test_a_job_that_a_worker_without_turns_has_claimed_holds_nobody_up(
    store: Store, broker: RedisBroker, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    pool = some_worker.pool
    taken, waiting = submit_job(), submit_job()
    store.client.zrem(f"qlora:queue:{pool}", taken.id)
    store.client.hset(f"qlora:job:{taken.id}", "state", "running")

    reconcile(store, broker)

    claim = store.claim(pool, some_worker)
    assert claim is not None
    assert claim.job.id == waiting.id


@pytest.mark.parametrize("lost", [True, False])
def test_a_job_that_ran_before_an_upgrade_goes_back_to_the_queue_and_is_claimed_again(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, lost: bool
) -> None:
    pool = some_worker.pool
    job = submit_job()
    claim = store.claim(pool, some_worker)
    assert claim is not None
    store.client.delete(f"qlora:seats:{pool}", f"qlora:active:{pool}", f"qlora:active:{pool}:{job.submitted_by}")

    if lost:
        store.client.zadd("qlora:leases", {job.id: 1})
        store.expire_leases()
    else:
        store.requeue(claim)

    again = store.claim(pool, some_worker)
    assert again is not None
    assert again.job.id == job.id


def test_a_job_of_a_silent_host_gets_its_place_and_a_ticket(
    store: Store, broker: RedisBroker, submit_job: Submit, some_worker: WorkerInfo, eventually: Eventually
) -> None:
    brief = Store(store.client, lease_s=0.5)
    job = submit_job()
    brief.claim(some_worker.pool, some_worker)

    eventually(lambda: reconcile(brief, broker).expired)

    assert store.get(job.id).state is JobState.QUEUED
    assert tickets_waiting(broker, some_worker.pool) == 1


def test_the_reconciler_thread_looks_again_until_it_is_closed(
    store: Store, broker: RedisBroker, submit_job: Submit, eventually: Eventually
) -> None:
    reconciler = Reconciler(store, broker, interval_s=0.02)
    reconciler.start()
    pool = submit_job().pool
    eventually(lambda: tickets_waiting(broker, pool) == 1)
    broker.do_fetch(queue_name(pool), 1)
    eventually(lambda: tickets_waiting(broker, pool) == 1)

    reconciler.close()

    assert not reconciler.is_alive()


def test_a_killed_redis_loses_nothing_and_costs_nobody_his_lease(
    tmp_path: Path, run_spec: RunSpec, some_worker: WorkerInfo, eventually: Eventually
) -> None:
    with EmbeddedRedis(tmp_path) as server:
        store, broker = Store.connect(server.url, lease_s=1.5), build_broker(server.url)
        reconcile(store, broker)
        jobs = [
            store.submit(run_spec, submitted_by="U1", origin={}, request_id=f"request-{number}") for number in range(3)
        ]
        healthy, dead = (store.claim(some_worker.pool, some_worker) for _ in range(2))
        assert healthy is not None
        assert dead is not None
        store.append(healthy, PhaseStarted(phase=Phase.MODEL))
        issue_ticket(broker, some_worker.pool)
        before = [store.get(job.id) for job in jobs], [store.events(job.id) for job in jobs]
        leases_end = time.monotonic() + store.lease_s

        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(server.pid)], timeout=20)
        server.stop()
        eventually(lambda: time.monotonic() > leases_end)
        server.start()

        # Nothing is lost, and the leases that ran out meanwhile are nobody's fault.
        assert ([store.get(job.id) for job in jobs], [store.events(job.id) for job in jobs]) == before
        assert tickets_waiting(broker, some_worker.pool) == 1
        assert reconcile(store, broker).expired == ()
        assert store.renew(healthy).owned is True

        # Once the grace is over, only who stayed silent is called dead.
        lost: list[str] = []

        def somebody_is_lost() -> bool:
            assert store.renew(healthy).owned is True
            lost.extend(job.id for job in reconcile(store, broker).expired)
            return bool(lost)

        eventually(somebody_is_lost)
        assert lost == [dead.job.id]
        store.close()
        broker.client.close()


@pytest.fixture
def held_briefly(
    store: Store, broker: RedisBroker, submit_job: Submit, some_worker: WorkerInfo, eventually: Eventually
) -> tuple[Store, Claim]:
    """A job that is held under a lease of 0.6 seconds, and the store it was claimed through; Redis is at hand."""
    brief = Store(store.client, lease_s=0.6)
    eventually(lambda: reconcile(brief, broker) and brief.settled_s() > brief.lease_s)
    submit_job()
    claim = brief.claim(some_worker.pool, some_worker)
    assert claim is not None
    return brief, claim


def test_an_outage_for_everybody_costs_nobody_his_lease(
    held_briefly: tuple[Store, Claim], broker: RedisBroker, eventually: Eventually
) -> None:
    brief, claim = held_briefly
    # Nobody reaches Redis for longer than a lease, and the first to come back is a reconciler.
    back_at = time.monotonic() + brief.lease_s
    eventually(lambda: time.monotonic() > back_at)

    assert reconcile(brief, broker).expired == ()
    assert brief.renew(claim).owned is True


def set_clock(store: Store, hours: float) -> None:
    """Have the server's clock jump, by moving all that was written before the other way."""
    moved = round(hours * 3.6e9)
    for name in ("asked", "since"):
        store.client.hincrby("qlora:server", name, -moved)
    for job_id, _ in store.client.zscan_iter("qlora:leases"):
        store.client.zincrby("qlora:leases", -moved, job_id)


def test_a_clock_that_is_set_forward_costs_nobody_his_lease(
    held_briefly: tuple[Store, Claim], broker: RedisBroker
) -> None:
    brief, claim = held_briefly
    set_clock(brief, 1)

    assert reconcile(brief, broker).expired == ()
    assert brief.renew(claim).owned is True


def test_a_clock_that_is_set_back_keeps_no_dead_host_alive(
    store: Store, broker: RedisBroker, submit_job: Submit, some_worker: WorkerInfo, eventually: Eventually
) -> None:
    brief = Store(store.client, lease_s=0.6)
    reconcile(brief, broker)
    job = submit_job()
    brief.claim(some_worker.pool, some_worker)

    set_clock(store, -1)

    assert reconcile(brief, broker).expired == ()
    eventually(lambda: reconcile(brief, broker).expired)
    assert store.get(job.id).state is JobState.QUEUED


def test_the_reconciler_outlives_a_redis_that_is_away(
    tmp_path: Path, run_spec: RunSpec, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedRedis(tmp_path) as server:
        store, broker = Store(build_client(server.url, decode_responses=True, retries=0)), build_broker(server.url)
        reconciler = Reconciler(store, broker, interval_s=0.05)
        reconciler.start()
        server.stop()
        eventually(lambda: "Redis does not answer" in caplog.text)
        server.start()

        job = store.submit(run_spec, submitted_by="U1", origin={}, request_id="request-1")
        eventually(lambda: tickets_waiting(broker, job.pool) == 1)

        reconciler.close()
        store.close()
        broker.client.close()


# --- many reconcilers ------------------------------------------------------------------------------------------------


def test_one_reconciler_looks_for_all_until_its_turn_is_over(
    store: Store, broker: RedisBroker, submit_job: Submit, eventually: Eventually
) -> None:
    pool = submit_job().pool
    first, second = (Reconciler(store, broker, interval_s=600.0) for _ in range(2))
    first.start()
    eventually(lambda: tickets_waiting(broker, pool) == 1)
    submit_job()

    second.start()
    second.close()
    assert tickets_waiting(broker, pool) == 1

    store.client.delete("qlora:turn:reconciler")
    third = Reconciler(store, broker, interval_s=600.0)
    third.start()
    eventually(lambda: tickets_waiting(broker, pool) == 2)
    for reconciler in (first, third):
        reconciler.close()


def test_all_jobs_that_ended_long_ago_are_removed_a_few_at_once(
    store: Store, broker: RedisBroker, submit_job: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.reconciler.FORGET_AT_ONCE", 2)
    for _ in range(5):
        job = store.request_stop(submit_job().id, "U2")
        store.client.zadd("qlora:finished", {job.id: 1})

    assert clean(store, broker) == 5
    assert store.jobs() == []
