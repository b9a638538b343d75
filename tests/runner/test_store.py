"""What requesters and readers see of the store."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from runner.errors import JobError, UnavailableError
from runner.events import PhaseStarted
from runner.job_events import JobCancelled, JobClaimed, JobFailed, JobQueued, JobSucceeded, StopRequested
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.redis_client import build_client
from runner.reports import Phase
from runner.spec import RunSpec
from runner.store import Store
from tests.examples import SUMMARY

Submit = Callable[..., JobRecord]


def kinds(store: Store, job_id: str) -> list[str]:
    return [stored.event.kind for stored in store.events(job_id)]


# --- submit ----------------------------------------------------------------------------------------------------------


def test_a_submitted_job_reads_back_as_it_was_returned(store: Store, submit_job: Submit, run_spec: RunSpec) -> None:
    job = submit_job(submitted_by="U7", origin={"channel": "C1", "user": "U7"}, priority="high")

    assert store.get(job.id) == job
    assert (job.spec, job.pool, job.priority) == (run_spec, run_spec.project.compute.pool, "high")
    assert (job.submitted_by, job.origin) == ("U7", {"channel": "C1", "user": "U7"})
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert abs(job.submitted_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_job_id_is_the_project_and_five_base32_characters(submit_job: Submit, run_spec: RunSpec) -> None:
    assert re.fullmatch(re.escape(run_spec.project.name) + r"-[a-z2-7]{5}", submit_job().id)


def test_a_repeated_request_gets_the_first_job(store: Store, submit_job: Submit) -> None:
    first = submit_job(request_id="same")

    assert submit_job(request_id="same", submitted_by="U9", priority="high") == first
    assert store.jobs() == [first]
    assert kinds(store, first.id) == ["job_queued"]


def test_concurrent_repeats_of_one_request_make_one_job(store: Store, valkey_url: str, run_spec: RunSpec) -> None:
    ids: list[str] = []
    together = threading.Barrier(8)

    def submit() -> None:
        own = Store.connect(valkey_url)
        together.wait()
        ids.append(own.submit(run_spec, submitted_by="U1", origin={}, request_id="same").id)
        own.close()

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ids == [store.jobs()[0].id] * 8
    assert len(store.jobs()) == 1


def test_job_queued_tells_the_true_position(store: Store, submit_job: Submit) -> None:
    jobs = [submit_job(), submit_job(), submit_job(priority="high"), submit_job(priority="low")]

    told = [stored.event for job in jobs for stored in store.events(job.id)]

    assert [event.position for event in told if isinstance(event, JobQueued)] == [1, 2, 1, 4]


def test_text_of_any_kind_survives(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    odd = 'Zoë "\\n" \n\t 🦙 <!channel> \x7f %s {} /'
    job = submit_job(submitted_by=odd, origin={"note": odd, "empty": ""})
    claim = store.claim(job.pool, some_worker.model_copy(update={"host": odd, "device": odd}))
    assert claim is not None

    ended = store.finish(claim, JobFailed(code="dataset", message=odd, hint=None))

    assert (ended.submitted_by, ended.origin, ended.host) == (odd, {"note": odd, "empty": ""}, odd)
    assert (ended.error_message, ended.error_hint) == (odd, None)
    assert [e.event.device for e in store.events(job.id) if isinstance(e.event, JobClaimed)] == [odd]


# --- origin ----------------------------------------------------------------------------------------------------------


def test_set_origin_adds_and_replaces_keys(store: Store, submit_job: Submit) -> None:
    job = submit_job(origin={"channel": "C1", "ts": "old"})

    store.set_origin(job.id, {"ts": "new", "permalink": "p"})

    assert store.get(job.id).origin == {"channel": "C1", "ts": "new", "permalink": "p"}


def test_set_origin_of_an_unknown_job_is_refused(store: Store) -> None:
    with pytest.raises(JobError) as caught:
        store.set_origin("demo-aaaaa", {"ts": "1"})

    assert caught.value.code == "job-not-found"
    assert store.client.keys() == []


# --- reading ---------------------------------------------------------------------------------------------------------


def test_an_unknown_job_is_not_found_and_the_nearest_is_named(store: Store, submit_job: Submit) -> None:
    job = submit_job()
    mistyped = job.id[:-1] + ("1" if job.id[-1] != "1" else "0")

    with pytest.raises(JobError) as caught:
        store.get(mistyped)

    assert caught.value.code == "job-not-found"
    assert caught.value.hint == f"Did you mean {job.id}?"


def test_a_record_of_a_newer_version_is_refused_by_name(store: Store, submit_job: Submit) -> None:
    job = submit_job()
    store.client.hset(f"qlora:job:{job.id}", "schema_version", "99")

    with pytest.raises(UnavailableError, match=f"{job.id} was written by a newer version"):
        store.get(job.id)


def test_an_unknown_field_of_the_same_version_is_left_out(store: Store, submit_job: Submit) -> None:
    job = submit_job()
    store.client.hset(f"qlora:job:{job.id}", "from_the_future", "x")

    assert store.get(job.id) == job


def test_jobs_come_newest_first_and_by_state(store: Store, submit_job: Submit) -> None:
    first, second, third = submit_job(), submit_job(), submit_job()
    cancelled = store.request_stop(second.id, "U2")

    assert store.jobs() == [third, cancelled, first]
    assert store.jobs(limit=2) == [third, cancelled]
    assert store.jobs(states=[JobState.QUEUED]) == [third, first]
    assert store.jobs(states=[JobState.QUEUED, JobState.CANCELLED], limit=2) == [third, cancelled]
    assert store.jobs(states=[JobState.FAILED]) == []


def test_active_or_recent_leaves_out_only_what_ended_before(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    ended_before, ended_after, running, queued = (submit_job() for _ in range(4))
    finished_at = store.request_stop(ended_before.id, "U2").finished_at
    assert finished_at is not None
    store.request_stop(ended_after.id, "U2")
    store.claim(running.pool, some_worker)

    seen = store.active_or_recent(finished_at + timedelta(microseconds=1))

    assert seen == [ended_after.id, running.id, queued.id]


def test_a_job_on_its_way_between_two_states_is_seen_once(
    store: Store, valkey_url: str, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    seen_enough = threading.Event()

    def move() -> None:
        own = Store.connect(valkey_url)
        while not seen_enough.is_set():
            claim = own.claim(some_worker.pool, some_worker)
            assert claim is not None
            own.requeue(claim)
        own.close()

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    seen = [[found.id for found in store.jobs()] for _ in range(200)]
    seen += [store.active_or_recent(job.submitted_at) for _ in range(200)]
    seen_enough.set()
    thread.join()

    assert seen == [[job.id]] * 400


def test_positions_follow_the_queue(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    normal, low, high = submit_job(), submit_job(priority="low"), submit_job(priority="high")

    assert store.queued(normal.pool) == [high, normal, low]
    assert [store.position(job.id) for job in (high, normal, low)] == [1, 2, 3]
    assert store.queue_lengths() == {normal.pool: 3}

    store.claim(normal.pool, some_worker)

    assert [store.position(job.id) for job in (high, normal, low)] == [None, 1, 2]
    assert store.queue_lengths() == {normal.pool: 2}
    assert store.queued("another-pool") == []


# --- claim -----------------------------------------------------------------------------------------------------------


def test_claims_go_by_priority_then_by_age(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    priorities = ["normal", "low", "high", "normal", "high", "low"]
    jobs = [submit_job(priority=priority) for priority in priorities]

    order = [claim.job.id for claim in iter(lambda: store.claim(some_worker.pool, some_worker), None)]

    assert order == [jobs[index].id for index in (2, 4, 0, 3, 1, 5)]


def test_a_claim_tells_who_has_the_job(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()

    claim = store.claim(job.pool, some_worker)

    assert claim is not None
    assert claim.job == store.get(job.id)
    assert (claim.job.state, claim.job.attempt) == (JobState.RUNNING, 1)
    assert (claim.job.host, claim.job.worker) == (some_worker.host, some_worker.name)
    assert claim.job.started_at is not None
    last = store.events(job.id)[-1]
    assert isinstance(last.event, JobClaimed)
    assert (last.attempt, last.event.attempt, last.event.worker) == (1, 1, some_worker.name)


def test_there_is_nothing_to_claim_in_another_pool(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    submit_job()

    assert store.claim("another-pool", some_worker) is None


# --- stop ------------------------------------------------------------------------------------------------------------


def test_stopping_a_queued_job_cancels_it_for_good(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()

    stopped = store.request_stop(job.id, "U2")

    assert (stopped.state, stopped.stop_requested_by) == (JobState.CANCELLED, "U2")
    assert stopped.finished_at is not None
    assert store.claim(job.pool, some_worker) is None
    last = store.events(job.id)[-1].event
    assert isinstance(last, JobCancelled)
    assert (last.by, last.step) == ("U2", None)


def test_stopping_a_running_job_asks_its_attempt(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    claim = store.claim(job.pool, some_worker)
    assert claim is not None
    assert store.renew(claim).stop_requested_by is None

    stopping = store.request_stop(job.id, "U2")

    assert (stopping.state, stopping.stop_requested_by) == (JobState.STOPPING, "U2")
    assert store.renew(claim).stop_requested_by == "U2"
    assert isinstance(store.events(job.id)[-1].event, StopRequested)


def test_asking_a_running_job_to_stop_twice_changes_nothing(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    store.claim(job.pool, some_worker)
    first = store.request_stop(job.id, "U2")

    assert store.request_stop(job.id, "U3") == first
    assert kinds(store, job.id) == ["job_queued", "job_claimed", "stop_requested"]


def test_stopping_a_queued_job_twice_says_that_it_is_over(store: Store, submit_job: Submit) -> None:
    job = submit_job()
    store.request_stop(job.id, "U2")

    with pytest.raises(JobError, match="has been cancelled") as caught:
        store.request_stop(job.id, "U2")

    assert caught.value.code == "job-finished"
    assert kinds(store, job.id) == ["job_queued", "job_cancelled"]


def test_stopping_an_unknown_job_is_refused(store: Store) -> None:
    with pytest.raises(JobError) as caught:
        store.request_stop("demo-aaaaa", "U2")

    assert caught.value.code == "job-not-found"


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_succeeded_job_keeps_summary_and_adapter(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    claim = store.claim(job.pool, some_worker)
    assert claim is not None
    end = JobSucceeded(summary=SUMMARY, adapter_path="/out/demo/adapter")

    ended = store.finish(claim, end)

    assert ended == store.get(job.id)
    assert (ended.state, ended.summary, ended.adapter_path) == (JobState.SUCCEEDED, SUMMARY, "/out/demo/adapter")
    assert ended.finished_at is not None
    assert store.events(job.id)[-1].event == end


def test_a_failed_job_keeps_code_message_and_hint(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    claim = store.claim(job.pool, some_worker)
    assert claim is not None

    ended = store.finish(claim, JobFailed(code="dataset", message="Row 3 is empty.", hint="Fix it."))

    assert ended.state is JobState.FAILED
    assert (ended.error_code, ended.error_message, ended.error_hint) == ("dataset", "Row 3 is empty.", "Fix it.")


# --- workers ---------------------------------------------------------------------------------------------------------


def test_announced_workers_are_listed_by_pool(store: Store, some_worker: WorkerInfo) -> None:
    other = some_worker.model_copy(update={"name": "host-b:1", "pool": "big"})
    store.announce(other)
    store.announce(some_worker)
    store.announce(some_worker)

    assert store.workers() == [some_worker, other]
    assert store.workers("big") == [other]


def test_a_withdrawn_worker_is_gone(store: Store, some_worker: WorkerInfo) -> None:
    store.announce(some_worker)

    store.withdraw(some_worker.name)

    assert store.workers() == []


def test_a_silent_worker_is_gone_after_a_lease(
    store: Store, some_worker: WorkerInfo, eventually: Callable[..., None]
) -> None:
    Store(store.client, lease_s=0.05).announce(some_worker)

    eventually(lambda: store.workers() == [])


# --- Redis away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [("^.*$", "unix:///nowhere/redis.sock"), (":[^:@]+@", ":wrong@")])
def test_no_wrong_address_is_an_unexpected_error(valkey_url: str, change: tuple[str, str]) -> None:
    store = Store(build_client(re.sub(*change, valkey_url), decode_responses=True, retries=0))

    with pytest.raises(UnavailableError):
        store.jobs()
    store.close()


def test_an_address_that_cannot_be_meant_is_refused_without_its_password() -> None:
    with pytest.raises(UnavailableError, match="is no Redis address") as caught:
        Store.connect("http://user:secret@127.0.0.1/")

    assert "secret" not in str(caught.value)


def test_an_event_of_the_child_is_kept_to_the_letter(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    claim = store.claim(job.pool, some_worker)
    assert claim is not None
    event = PhaseStarted(phase=Phase.MODEL)

    store.append(claim, event)

    last = store.events(job.id)[-1]
    assert (last.seq, last.attempt, last.event) == (3, 1, event)
