"""A worker claims only what its devices suffice for, in the order of turns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.jobs import JobRecord, JobState, Priority, WorkerInfo
from runner.pools import Gpu, Obstacle, PoolLimits
from runner.spec import Compute, RunSpec
from runner.store import Store

Submit = Callable[..., JobRecord]
RANKS: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


@pytest.fixture
def submit(store: Store, run_spec: RunSpec) -> Submit:
    """Submit a job that needs something of its worker."""

    def submit(who: str = "A", priority: Any = "normal", **need: Any) -> JobRecord:
        project = run_spec.project.model_copy(update={"compute": Compute(pool="cpu", **need)})
        return store.submit(
            run_spec.model_copy(update={"project": project}),
            submitted_by=who,
            origin={},
            request_id=f"request-{store.client.dbsize()}",
            priority=priority,
        )

    return submit


def with_gpus(worker: WorkerInfo, *memory_mib: int | None) -> WorkerInfo:
    gpus = [Gpu(index=n, uuid=f"GPU-{n}", name="NVIDIA L4", memory_mib=memory) for n, memory in enumerate(memory_mib)]
    return worker.model_copy(update={"gpus": tuple(gpus)})


def claimed(store: Store, worker: WorkerInfo) -> str | None:
    claim = store.claim("cpu", worker)
    return claim.job.id if claim is not None else None


@pytest.mark.parametrize(
    ("memory_mib", "need", "fits"),
    [
        ([24 * 1024], {"min_gpu_memory_gib": 24.0}, True),
        ([24 * 1024 - 1], {"min_gpu_memory_gib": 24.0}, False),
        ([81920, 24 * 1024 - 1], {"min_gpu_memory_gib": 24.0}, False),
        ([None], {}, True),
        ([None], {"min_gpu_memory_gib": 1.0}, False),
        ([81920], {"gpus": 2}, False),
        ([81920, 81920], {"gpus": 2, "min_gpu_memory_gib": 79.5}, True),
        ([], {"gpus": 4}, True),
        ([], {"min_gpu_memory_gib": 1.0}, False),
    ],
)
def test_a_job_is_claimed_by_a_worker_whose_devices_suffice(  # noqa: PLR0917 - pytest passes them by name
    store: Store,
    submit: Submit,
    some_worker: WorkerInfo,
    memory_mib: list[int | None],
    need: dict[str, Any],
    fits: bool,
) -> None:
    job, worker = submit(**need), with_gpus(some_worker, *memory_mib)

    assert worker.fits(job.spec.project.compute) is fits
    assert store.obstacle("cpu", worker) is (None if fits else Obstacle.UNFIT)
    assert claimed(store, worker) == (job.id if fits else None)


def test_a_job_that_does_not_fit_is_left_in_its_place_for_another_worker(
    store: Store, submit: Submit, some_worker: WorkerInfo
) -> None:
    large, small = submit(gpus=2), submit()

    assert claimed(store, with_gpus(some_worker, 81920)) == small.id
    assert store.position(large.id) == 1
    assert claimed(store, with_gpus(some_worker, 81920, 81920)) == large.id


def test_a_job_that_does_not_fit_takes_nothing_of_its_submitter_s_limit(
    store: Store, submit: Submit, some_worker: WorkerInfo
) -> None:
    store.set_limits("cpu", PoolLimits(max_running_per_user=1))
    submit(gpus=2)
    small, further = submit(), submit()
    worker = with_gpus(some_worker, 81920)

    assert claimed(store, worker) == small.id
    assert claimed(store, worker) is None
    assert further.id in {job.id for job in store.queued("cpu")}


def test_an_empty_queue_and_a_drained_host_are_told_apart_from_jobs_that_do_not_fit(
    store: Store, submit: Submit, some_worker: WorkerInfo
) -> None:
    assert store.obstacle("cpu", some_worker) is None

    submit(min_gpu_memory_gib=8.0)
    store.drain(some_worker.host, "ann")

    assert store.obstacle("cpu", some_worker) is Obstacle.DRAINED


def test_what_a_job_of_an_older_version_needs_is_read_from_its_spec(
    store: Store, submit: Submit, some_worker: WorkerInfo
) -> None:
    job = submit(gpus=2)
    store.client.hdel(f"qlora:job:{job.id}", "gpus", "min_gpu_memory_gib")
    spec = json.loads(store.client.hget(f"qlora:job:{job.id}", "spec"))  # type: ignore[arg-type]  # it is text
    del spec["project"]["compute"]["min_gpu_memory_gib"]
    store.client.hset(f"qlora:job:{job.id}", "spec", json.dumps(spec))

    assert claimed(store, with_gpus(some_worker, 81920)) is None
    assert claimed(store, with_gpus(some_worker, 81920, 81920)) == job.id


NEEDS = st.tuples(
    st.sampled_from("ABC"),
    st.sampled_from(["high", "normal", "low"]),
    st.integers(1, 3),
    st.sampled_from([None, 8.0, 40.0]),
)
WORKERS = st.lists(st.sampled_from([4096, 24576, 81920]), max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(NEEDS, max_size=30), workers=st.lists(WORKERS, min_size=1, max_size=40))
def test_among_the_jobs_that_fit_a_worker_turns_are_taken_as_among_all(
    store: Store, submit: Submit, some_worker: WorkerInfo, jobs: list[Any], workers: list[list[int]]
) -> None:
    store.client.flushall()
    for who, priority, gpus, memory in jobs:
        submit(who, priority, gpus=gpus, min_gpu_memory_gib=memory)
    for memory_mib in workers:
        worker = with_gpus(some_worker, *memory_mib)
        fitting = [job for job in store.queued("cpu") if worker.fits(job.spec.project.compute)]
        running = Counter(job.submitted_by for job in store.jobs(100, states=[JobState.RUNNING]))
        claim = store.claim("cpu", worker)

        assert (claim is not None) is bool(fitting)
        if claim is not None:
            job = claim.job
            assert job.id in {one.id for one in fitting}
            key = (RANKS[job.priority], running[job.submitted_by])
            assert key == min((RANKS[one.priority], running[one.submitted_by]) for one in fitting)
            own = [one for one in fitting if one.submitted_by == job.submitted_by]
            assert job.id == own[0].id
