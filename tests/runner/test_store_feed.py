"""Events and news: nothing twice, nothing missed, however late one asks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from runner.events import MetricsLogged, PhaseStarted
from runner.jobs import JobRecord, WorkerInfo
from runner.reports import Phase
from runner.store import Claim, Store

Submit = Callable[..., JobRecord]


def metrics(step: int) -> MetricsLogged:
    return MetricsLogged(
        step=step, total_steps=10**6, epoch=0.1, loss=0.1 + 0.2, learning_rate=1e-300, tokens_per_s=1 / 3, eta_s=1e17
    )


def claim_next(store: Store, worker: WorkerInfo) -> Claim:
    claim = store.claim(worker.pool, worker)
    assert claim is not None
    return claim


def test_events_are_numbered_without_a_gap(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    claim = claim_next(store, some_worker)
    for step in range(1, 51):
        store.append(claim, metrics(step))

    assert [stored.seq for stored in store.events(job.id)] == list(range(1, 53))


def test_events_can_be_read_from_any_point(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    claim = claim_next(store, some_worker)
    store.append(claim, metrics(1))
    history = store.events(job.id)

    assert store.events(job.id, after=1) == history[1:]
    assert store.events(job.id, after=3) == []
    assert store.events("demo-aaaaa") == []


def test_numbers_in_events_keep_every_digit(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()
    event = metrics(7)

    store.append(claim_next(store, some_worker), event)

    assert store.events(job.id)[-1].event == event


def test_a_loss_that_is_no_number_can_be_read_back(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    job = submit_job()

    store.append(claim_next(store, some_worker), metrics(1).model_copy(update={"loss": math.nan, "eta_s": math.inf}))

    event = store.events(job.id)[-1].event
    assert isinstance(event, MetricsLogged)
    assert math.isnan(event.loss)
    assert event.eta_s == math.inf


def test_events_from_several_processes_have_no_gap_and_no_double(
    store: Store, valkey_url: str, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    job = submit_job()
    claim = claim_next(store, some_worker)

    def write(first: int) -> None:
        own = Store.connect(valkey_url)
        for step in range(first, first + 50):
            own.append(claim, metrics(step))
        own.close()

    threads = [threading.Thread(target=write, args=(first,)) for first in (1, 51, 101)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    history = store.events(job.id, after=2)
    assert [stored.seq for stored in history] == list(range(3, 153))
    assert {e.event.step for e in history if isinstance(e.event, MetricsLogged)} == set(range(1, 151))


def test_the_feed_begins_with_every_job(store: Store, submit_job: Submit) -> None:
    jobs = [submit_job() for _ in range(3)]

    cursor, ids = store.feed("0", block_ms=0)

    assert ids == [job.id for job in jobs]
    assert store.feed(cursor, block_ms=0) == (cursor, [])


def test_the_feed_names_a_job_once_however_much_has_happened(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    first, second = submit_job(), submit_job()
    cursor, _ = store.feed("0", block_ms=0)
    claim = claim_next(store, some_worker)
    for step in range(3):
        store.append(claim, metrics(step))
    store.request_stop(second.id, "U2")
    store.append(claim, PhaseStarted(phase=Phase.SAVING))

    _, ids = store.feed(cursor, block_ms=0)

    assert ids == [second.id, first.id]


def test_an_old_cursor_still_finds_everything_after_the_feed_was_trimmed(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    start, _ = store.feed("0", block_ms=0)
    quiet = submit_job()
    busy = submit_job(priority="high")
    claim = claim_next(store, some_worker)
    for step in range(2500):
        store.append(claim, metrics(step))
    assert store.client.xlen("qlora:feed") < 2000

    _, ids = store.feed(start, block_ms=0)

    assert ids == [quiet.id, busy.id]


def test_the_feed_wakes_up_when_something_happens(store: Store, valkey_url: str, submit_job: Submit) -> None:
    submit_job()
    cursor, _ = store.feed("0", block_ms=0)
    waiting = Store.connect(valkey_url)
    answers: list[list[str]] = []

    def wait() -> None:
        deadline = time.monotonic() + 30
        at = cursor
        while not answers and time.monotonic() < deadline:
            at, ids = waiting.feed(at, block_ms=60_000)
            if ids:
                answers.append(ids)

    thread = threading.Thread(target=wait)
    thread.start()
    job = submit_job()
    thread.join()
    waiting.close()

    assert answers == [[job.id]]


def test_a_reader_finds_its_way_back_when_redis_forgot_everything(store: Store, submit_job: Submit) -> None:
    for _ in range(3):
        submit_job()
    cursor, _ = store.feed("0", block_ms=0)
    store.client.flushall()
    job = submit_job()

    cursor, ids = store.feed(cursor, block_ms=0)
    assert (cursor, ids) == ("0", [])
    assert store.feed(cursor, block_ms=0)[1] == [job.id]
