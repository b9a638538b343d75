"""Whose turn it is: fair shares inside a priority, limits, and positions that are the real order of claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import PolicyError
from runner.job_events import JobFailed, JobQueued
from runner.jobs import JobRecord, JobState, Priority, WorkerInfo
from runner.pools import PoolLimits
from runner.spec import RunSpec
from runner.store import Claim, Store

Submit = Callable[..., JobRecord]
RANKS: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


def claim_next(store: Store, worker: WorkerInfo) -> Claim:
    claim = store.claim(worker.pool, worker)
    assert claim is not None
    return claim


def claim_all(store: Store, worker: WorkerInfo) -> list[JobRecord]:
    return [claim.job for claim in iter(lambda: store.claim(worker.pool, worker), None)]


def end(store: Store, claim: Claim) -> None:
    store.finish(claim, JobFailed(code="dataset", message="m"))


def submitters(jobs: list[JobRecord]) -> str:
    return "".join(job.submitted_by for job in jobs)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_submitters_take_turns(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    for who in "AAAABBC":
        submit_job(submitted_by=who)

    assert submitters(claim_all(store, some_worker)) == "ABCABAA"


def test_turns_are_taken_inside_a_priority(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    for who, priority in [("A", "normal"), ("B", "low"), ("A", "high"), ("A", "high"), ("B", "normal")]:
        submit_job(submitted_by=who, priority=priority)

    order = [(job.submitted_by, job.priority) for job in claim_all(store, some_worker)]

    # B comes first among the normal jobs: A has two running by then.
    assert order == [("A", "high"), ("A", "high"), ("B", "normal"), ("A", "normal"), ("B", "low")]


def test_who_has_a_job_running_comes_after_who_has_none(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job(submitted_by="A")
    claim_next(store, some_worker)
    waiting, newcomer = submit_job(submitted_by="A"), submit_job(submitted_by="B")

    assert store.queued(some_worker.pool) == [newcomer, waiting]


def test_a_single_worker_serves_submitters_in_turn(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    for who in "AAABB":
        submit_job(submitted_by=who)

    served = ""
    while (claim := store.claim(some_worker.pool, some_worker)) is not None:
        served += claim.job.submitted_by
        end(store, claim)

    assert served == "ABABA"


def test_who_comes_back_after_a_while_has_no_claim_to_former_turns(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job(submitted_by="A")
    end(store, claim_next(store, some_worker))
    waiting = submit_job(submitted_by="B")
    back = submit_job(submitted_by="A")

    assert store.queued(some_worker.pool) == [waiting, back]


def test_pools_are_shared_each_on_its_own(
    store: Store, submit_job: Submit, run_spec: RunSpec, some_worker: WorkerInfo
) -> None:
    elsewhere = run_spec.project.compute.model_copy(update={"pool": "big"})
    big = run_spec.model_copy(update={"project": run_spec.project.model_copy(update={"compute": elsewhere})})
    store.submit(big, submitted_by="A", origin={}, request_id="big")
    claim_next(store, some_worker.model_copy(update={"pool": "big"}))
    first, second = submit_job(submitted_by="A"), submit_job(submitted_by="B")

    assert store.queued(some_worker.pool) == [first, second]


def test_a_job_given_back_is_the_next_of_its_submitter(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    for who in "AABB":
        submit_job(submitted_by=who)
    claim = claim_next(store, some_worker)

    store.requeue(claim)

    assert submitters(store.queued(some_worker.pool)) == "ABAB"
    assert store.position(claim.job.id) == 1


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_user_at_his_limit_waits_behind_all_others(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    store.set_limits(some_worker.pool, PoolLimits(max_running_per_user=1))
    first, urgent = submit_job(submitted_by="A", priority="high"), submit_job(submitted_by="A", priority="high")
    other = submit_job(submitted_by="B", priority="low")

    assert [store.position(job.id) for job in (first, other, urgent)] == [1, 2, 3]
    assert store.claimable() == {some_worker.pool: 2}
    claims = [store.claim(some_worker.pool, some_worker) for _ in range(3)]
    assert [claim and claim.job.id for claim in claims] == [first.id, other.id, None]
    assert store.claimable() == {some_worker.pool: 0}

    assert claims[0] is not None
    end(store, claims[0])

    assert claim_next(store, some_worker).job.id == urgent.id


def test_no_more_jobs_run_in_a_pool_than_its_limit(store: Store, submit_job: Submit, some_worker: WorkerInfo) -> None:
    for who in "ABC":
        submit_job(submitted_by=who)
    store.set_limits(some_worker.pool, PoolLimits(max_running=2))
    assert store.claimable() == {some_worker.pool: 2}

    assert len(claim_all(store, some_worker)) == 2


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (PoolLimits(max_queued_per_user=2), "A has 2 waiting there, and the limit is 2"),
        (PoolLimits(max_queued=2), "It has 2 waiting there, and the limit is 2"),
        # Somebody has lowered it.
        (PoolLimits(max_queued=1), "It has 2 waiting there, and the limit is 1"),
    ],
)
def test_a_full_queue_takes_no_further_job_but_repeats_the_answer_to_an_earlier_one(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, limits: PoolLimits, told: str
) -> None:
    first = submit_job(submitted_by="A", request_id="first")
    submit_job(submitted_by="A")
    store.set_limits(some_worker.pool, limits)

    with pytest.raises(PolicyError, match=told) as caught:
        submit_job(submitted_by="A")

    assert caught.value.code == "limit-reached"
    assert submit_job(submitted_by="A", request_id="first") == first
    assert len(store.jobs()) == 2


def test_limits_that_are_taken_away_put_everybody_back_in_turn(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    store.set_limits(some_worker.pool, PoolLimits(max_running_per_user=1))
    for who in "AAB":
        submit_job(submitted_by=who)
    claim_all(store, some_worker)
    assert store.limits(some_worker.pool) == PoolLimits(max_running_per_user=1)

    store.set_limits(some_worker.pool, PoolLimits())

    assert store.limits(some_worker.pool) == PoolLimits()
    assert submitters(claim_all(store, some_worker)) == "A"


# --- positions -------------------------------------------------------------------------------------------------------

WHO = st.sampled_from("ABC")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), WHO, st.sampled_from(list(RANKS))),
        st.tuples(st.just("claim")),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("give back"), st.integers(0, 9)),
        st.tuples(st.just("stop"), st.integers(0, 9)),
        st.tuples(st.just("limit"), st.sampled_from([None, 1, 2])),
    ),
    min_size=4,
    max_size=30,
)


def who_is_entitled(store: Store, pool: str) -> set[str]:
    """Who may be next, by the rule as people are told it: the highest priority, there the fewest running jobs."""
    running = Counter(job.submitted_by for job in store.jobs(100, states=[JobState.RUNNING]))
    most = store.limits(pool).max_running_per_user or 100
    queued = [job for job in store.jobs(100, states=[JobState.QUEUED]) if running[job.submitted_by] < most]
    highest = min((RANKS[job.priority] for job in queued), default=0)
    at_the_top = {job.submitted_by for job in queued if RANKS[job.priority] == highest}
    fewest = min((running[who] for who in at_the_top), default=0)
    return {who for who in at_the_top if running[who] == fewest}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_positions_are_the_real_order_of_claims_whatever_happened(
    store: Store, run_spec: RunSpec, some_worker: WorkerInfo, steps: list[Any]
) -> None:
    store.client.flushall()
    pool = some_worker.pool
    held: list[Claim] = []
    for step in steps:
        match step:
            case ("submit", who, priority):
                job = store.submit(
                    run_spec,
                    submitted_by=who,
                    origin={},
                    request_id=uuid4().hex,
                    priority=priority,
                )
                told = store.events(job.id)[0].event
                assert isinstance(told, JobQueued)
                assert told.position == store.position(job.id)
            case ("claim",):
                expected, entitled = store.queued(pool), who_is_entitled(store, pool)
                claim = store.claim(pool, some_worker)
                assert (claim is not None) is bool(entitled)
                if claim is not None:
                    assert claim.job.id == expected[0].id
                    assert claim.job.submitted_by in entitled
                    held.append(claim)
            case ("end", number) if held:
                end(store, held.pop(int(number) % len(held)))
            case ("give back", number) if held:
                store.requeue(held.pop(int(number) % len(held)))
            case ("stop", number) if queued := store.jobs(states=[JobState.QUEUED]):
                store.request_stop(queued[int(number) % len(queued)].id, "U9")
            case ("limit", most):
                store.set_limits(pool, PoolLimits(max_running_per_user=most))

    expected = store.queued(pool)
    assert len(expected) == len(store.jobs(100, states=[JobState.QUEUED])) == store.queue_lengths().get(pool, 0)
    assert [store.position(job.id) for job in expected] == list(range(1, len(expected) + 1))
    free = store.claimable().get(pool, 0)
    assert [job.id for job in claim_all(store, some_worker)] == [job.id for job in expected[:free]]

    store.set_limits(pool, PoolLimits())
    for job in store.jobs(100, states=[JobState.QUEUED]):
        store.request_stop(job.id, "U9")
    for job in store.jobs(100, states=[JobState.RUNNING]):
        end(store, Claim(job, int(store.client.hget(f"qlora:job:{job.id}", "token"))))  # type: ignore[arg-type]
    # Nothing of anybody's turn is left when nobody waits or runs.
    assert not [key for kind in ("queue", "turns", "seats", "active") for key in store.client.keys(f"qlora:{kind}:*")]


# --- what it costs ---------------------------------------------------------------------------------------------------


def commands_of(store: Store, call: Callable[[], object]) -> int:
    """Commands that Redis carried out for a call, those of its steps included."""
    store.client.config_resetstat()
    call()
    stats: Any = store.client.info("commandstats")
    return sum(
        stat["calls"] for name, stat in stats.items() if name not in {"cmdstat_info", "cmdstat_config|resetstat"}
    )


def test_a_submit_asks_redis_no_more_when_many_submitters_wait(store: Store, submit_job: Submit) -> None:
    for number in range(3):
        submit_job(submitted_by=f"U{number}")
    few = commands_of(store, lambda: submit_job(submitted_by="UNEW1"))
    for number in range(3, 60):
        submit_job(submitted_by=f"U{number}")

    many = commands_of(store, lambda: submit_job(submitted_by="UNEW2"))

    assert many == few


def test_the_front_of_a_queue_is_read_without_the_rest(store: Store, submit_job: Submit) -> None:
    for who in ("U1", "U1", "U1", "U2", "U3"):
        submit_job(submitted_by=who)
    submit_job(submitted_by="U4", priority="high")
    whole = store.queued("cpu")

    assert len(whole) == 6
    assert [store.queued("cpu", limit) for limit in (1, 3, 6, 9)] == [whole[:1], whole[:3], whole, whole]
