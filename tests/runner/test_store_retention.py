"""What Redis keeps of a job: an even choice of its measurements, every milestone, and nothing for ever."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from runner.event_lines import MEASUREMENTS, StoredEvent
from runner.events import AdapterSaved, CheckpointSaved, LossEvaluated, MetricsLogged, PhaseStarted
from runner.job_events import JobFailed
from runner.jobs import JobRecord, WorkerInfo
from runner.reports import Phase
from runner.settings import Retention, load_settings
from runner.store import Claim, Store
from runner.store_scripts import KEEP_BYTES

Submit = Callable[..., JobRecord]
KEEP = 200


def metrics(step: int) -> MetricsLogged:
    return MetricsLogged(
        step=step, total_steps=10**6, epoch=0.1, loss=1.0, learning_rate=0.1, tokens_per_s=1.0, eta_s=1.0
    )


@pytest.fixture
def tight(store: Store) -> Store:
    """The same store, which keeps fewer events."""
    return Store(store.client, retention=Retention(events=KEEP))


@pytest.fixture
def claim(tight: Store, submit_job: Submit, some_worker: WorkerInfo) -> Claim:
    submit_job()
    claim = tight.claim(some_worker.pool, some_worker)
    assert claim is not None
    return claim


def steps(history: list[StoredEvent]) -> list[int]:
    return [stored.event.step for stored in history if isinstance(stored.event, MetricsLogged)]


def train(store: Store, claim: Claim, until: int) -> None:
    """A long run: measurements of every kind, and a text that looks like one of them."""
    for step in range(1, until + 1):
        store.append(claim, metrics(step))
        if step % 20 == 0:
            store.append(claim, LossEvaluated(step=step, total_steps=until, loss=1.0, best_step=step, best_loss=1.0))
            store.append(claim, CheckpointSaved(step=step, path=f"/out/checkpoint-{step}"))
        if step % 100 == 0:
            store.append(claim, AdapterSaved(path='"kind":"metrics_logged"', size_bytes=step))


def test_a_long_history_keeps_every_milestone_and_an_even_curve(tight: Store, claim: Claim) -> None:
    train(tight, claim, 1500)

    history = tight.events(claim.job.id)

    assert len(history) <= KEEP
    assert [stored.event.size_bytes for stored in history if isinstance(stored.event, AdapterSaved)] == [
        *range(100, 1501, 100)
    ]
    kept = steps(history)
    assert (kept[0], kept[-1]) == (1, 1500)
    assert max(later - earlier for earlier, later in pairwise(kept)) <= 1500 / (KEEP / 8)
    newest = [stored.event for stored in history if isinstance(stored.event, CheckpointSaved)][-1]
    assert newest.step == 1500
    for half in (kept[: len(kept) // 2], kept[len(kept) // 2 :]):
        assert len(half) >= KEEP / 10


def test_events_keep_their_numbers_and_only_measurements_are_missing(tight: Store, claim: Claim) -> None:
    everything = {stored.seq: stored for stored in tight.events(claim.job.id)}
    for step in range(1, 500):
        tight.append(claim, metrics(step))
        newest = tight.events(claim.job.id, after=max(everything))
        assert [stored.seq for stored in newest] == [max(everything) + 1]
        everything |= {stored.seq: stored for stored in newest}
    tight.append(claim, PhaseStarted(phase=Phase.SAVING))

    history = tight.events(claim.job.id)

    assert history[-1].seq == len(everything) + 1
    assert [stored for stored in history if stored.seq in everything] == history[:-1]
    left_out = set(everything) - {stored.seq for stored in history}
    assert left_out
    assert {everything[seq].event.kind for seq in left_out} <= set(MEASUREMENTS)
    for after in (0, 1, 100, 400, 501, 502):
        assert tight.events(claim.job.id, after=after) == [stored for stored in history if stored.seq > after]


def test_a_finished_job_keeps_a_shorter_curve(tight: Store, claim: Claim) -> None:
    for step in range(1, 150):
        tight.append(claim, metrics(step))

    tight.finish(claim, JobFailed(code="dataset", message="m"))

    history = tight.events(claim.job.id)
    assert len(history) <= KEEP / 20 + 1
    assert [history[index].event.kind for index in (0, 1, -1)] == ["job_queued", "job_claimed", "job_failed"]
    assert (steps(history)[0], steps(history)[-1]) == (1, 149)


def test_a_short_history_stays_whole_when_its_job_is_over(store: Store, claim: Claim) -> None:
    # Measurements at uneven distances, of which an even choice would leave some out.
    for step, between in ((1, 0), (2, 3), (3, 0), (4, 1)):
        store.append(claim, metrics(step))
        for number in range(between):
            store.append(claim, AdapterSaved(path=f"{step}-{number}", size_bytes=1))

    store.finish(claim, JobFailed(code="dataset", message="m"))

    assert steps(store.events(claim.job.id)) == [1, 2, 3, 4]


def test_milestones_are_kept_however_many_there_are(tight: Store, claim: Claim) -> None:
    for number in range(KEEP + 50):
        tight.append(claim, AdapterSaved(path=str(number), size_bytes=1))
        tight.append(claim, metrics(number))

    kept = [stored.event.path for stored in tight.events(claim.job.id) if isinstance(stored.event, AdapterSaved)]

    assert kept == [str(number) for number in range(KEEP + 50)]


# --- jobs that are over ----------------------------------------------------------------------------------------------


def test_a_job_that_ended_long_ago_leaves_nothing_behind(store: Store, submit_job: Submit, claim: Claim) -> None:
    store.finish(claim, JobFailed(code="dataset", message="m"))
    before = {key for key in store.client.scan_iter() if claim.job.id in key}
    assert len(before) == 3
    running = submit_job(submitted_by="U2")
    store.client.zadd("qlora:finished", {claim.job.id: 1})

    assert store.forget() == 1

    assert [key for key in store.client.scan_iter() if claim.job.id in key] == []
    for key in ("jobs:failed", "finished"):
        assert store.client.zcard(f"qlora:{key}") == 0
    assert store.feed("0", 0)[1] == [running.id]
    assert store.jobs() == [running]
    assert store.forget() == 0


def test_a_job_is_kept_for_as_long_as_is_set(store: Store, submit_job: Submit) -> None:
    ended = [store.request_stop(submit_job().id, "U2") for _ in range(3)]
    day_us = 86_400_000_000
    now = store.client.zscore("qlora:finished", ended[0].id)
    store.client.zincrby("qlora:finished", -89 * day_us, ended[0].id)
    store.client.zincrby("qlora:finished", -91 * day_us, ended[1].id)
    assert now is not None

    assert store.forget() == 1
    assert Store(store.client, retention=Retention(days=30)).forget() == 1

    assert store.jobs() == [ended[2]]


def test_no_call_removes_more_than_it_is_told(store: Store, submit_job: Submit) -> None:
    for _ in range(5):
        job = store.request_stop(submit_job().id, "U2")
        store.client.zadd("qlora:finished", {job.id: 1})

    assert [store.forget(most=2) for _ in range(4)] == [2, 2, 1, 0]


def test_what_only_recognises_repeats_expires(store: Store, submit_job: Submit, claim: Claim) -> None:
    store.finish(claim, JobFailed(code="dataset", message="m"))
    submit_job(request_id="once")

    week = 7 * 86_400
    assert 0 < store.client.ttl("qlora:request:once") <= week
    assert 0 < store.client.ttl(f"qlora:job:{claim.job.id}:writes") <= week / 7


def test_a_request_whose_job_is_forgotten_makes_a_new_one(store: Store, submit_job: Submit) -> None:
    first = store.request_stop(submit_job(request_id="same").id, "U2")
    store.client.zadd("qlora:finished", {first.id: 1})
    store.forget()

    assert submit_job(request_id="same").id != first.id


def test_retention_is_read_from_the_environment() -> None:
    settings = load_settings({"QLORA_KEEP_EVENTS": "500", "QLORA_KEEP_DAYS": "7.5"})

    assert settings.retention == Retention(events=500, days=7.5)
    assert load_settings({}).retention == Retention(events=1000, days=90)


# --- jobs that say too much ------------------------------------------------------------------------------------------


def bytes_of_events(store: Store, claim: Claim) -> int:
    return int(store.client.memory_usage(f"qlora:job:{claim.job.id}:events", samples=0) or 0)


def test_milestones_without_end_do_not_fill_redis(store: Store, claim: Claim) -> None:
    most = 0
    for number in range(400):
        store.append(claim, AdapterSaved(path=f"{number} {'x' * 100_000}", size_bytes=number))
        store.append(claim, PhaseStarted(phase=Phase.TRAINING))
        most = max(most, bytes_of_events(store, claim))
    running = store.events(claim.job.id)

    store.finish(claim, JobFailed(code="dataset", message="m"))

    assert most < 1.2 * KEEP_BYTES
    kept = [stored.event.size_bytes for stored in running if isinstance(stored.event, AdapterSaved)]
    assert (kept[0], kept[-1]) == (0, 399)
    assert max(later - earlier for earlier, later in pairwise(kept)) <= 400 / 20
    assert bytes_of_events(store, claim) < KEEP_BYTES / 5
    history = store.events(claim.job.id)
    assert [history[index].event.kind for index in (0, 1, -1)] == ["job_queued", "job_claimed", "job_failed"]
    assert [stored.seq for stored in running] == sorted({stored.seq for stored in running})
    for after in (0, 100, 799, 803):
        assert store.events(claim.job.id, after=after) == [stored for stored in history if stored.seq > after]


def test_an_end_of_a_megabyte_is_recorded_shortened(store: Store, claim: Claim) -> None:
    job = store.finish(claim, JobFailed(code="internal", message="begin " + "x" * 1_000_000 + " end"))

    assert job.error_message is not None
    assert len(job.error_message) < 5000
    assert "characters left out" in job.error_message
    assert job.error_message.endswith(" end")
