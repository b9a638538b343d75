"""Two hosts, each with an output root of its own, or with one that they share: where a requeued job goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.child import Spawn
from runner.events import CheckpointChosen, JobDeclined
from runner.jobs import JobRecord, WorkerInfo
from runner.settings import RunnerSettings
from runner.store import Store
from runner.supervisor import AttemptEnd, run_attempt

FIRST = "checkpoint(5)\nemit('run_interrupted', step=5, checkpoint='x')\nsys.exit(3)"
Attempt = Callable[[RunnerSettings, str], AttemptEnd]


@pytest.fixture
def hosts(settings: RunnerSettings, tmp_path: Path) -> tuple[RunnerSettings, RunnerSettings]:
    """Two hosts that share no disk."""
    return (
        dataclasses.replace(settings, output_root=tmp_path / "a", host="gpu-1"),
        dataclasses.replace(settings, output_root=tmp_path / "b", host="gpu-2"),
    )


@pytest.fixture
def attempt(store: Store, some_worker: WorkerInfo, scripted: Callable[[str], Spawn]) -> Attempt:
    """Let a host claim the job and run a scripted child."""

    def run(host: RunnerSettings, script: str) -> AttemptEnd:
        claim = store.claim("cpu", some_worker.model_copy(update={"name": host.host, "host": host.host}))
        assert claim is not None
        return run_attempt(store, claim, host, stopping=threading.Event(), spawn=scripted(script))

    return run


def told(store: Store, job: JobRecord) -> list[tuple[int, int, str]]:
    events = [stored.event for stored in store.events(job.id)]
    return [(one.step, one.newest_step, one.newest_host) for one in events if isinstance(one, CheckpointChosen)]


def test_on_a_shared_file_system_any_host_resumes_at_once_and_says_from_where(
    store: Store,
    submit_job: Callable[..., JobRecord],
    hosts: tuple[RunnerSettings, RunnerSettings],
    attempt: Attempt,
) -> None:
    here, there = hosts
    job = submit_job()
    assert attempt(here, FIRST) is AttemptEnd.REQUEUED
    assert told(store, job) == []
    assert store.get(job.id).checkpoint_host == "gpu-1"

    end = attempt(dataclasses.replace(there, output_root=here.output_root), "succeed()")

    assert end is AttemptEnd.SUCCEEDED
    assert told(store, job) == [(5, 5, "gpu-1")]


def test_on_local_disks_a_job_waits_for_the_host_that_has_its_checkpoint(
    store: Store,
    submit_job: Callable[..., JobRecord],
    hosts: tuple[RunnerSettings, RunnerSettings],
    attempt: Attempt,
) -> None:
    here, there = hosts
    job = submit_job()
    attempt(here, FIRST)

    assert attempt(there, "succeed()") is AttemptEnd.DECLINED

    declined = store.events(job.id)[-1].event
    assert isinstance(declined, JobDeclined)
    assert (declined.host, declined.reason) == ("gpu-2", "checkpoint-elsewhere")
    assert "its checkpoint of step 5 lies on host gpu-1" in declined.message
    assert not there.output_root.exists()
    assert attempt(here, "succeed()") is AttemptEnd.SUCCEEDED
    assert told(store, job) == [(5, 5, "gpu-1")]


def test_when_it_has_waited_long_enough_another_host_starts_it_again_and_says_why(
    store: Store,
    submit_job: Callable[..., JobRecord],
    hosts: tuple[RunnerSettings, RunnerSettings],
    attempt: Attempt,
) -> None:
    here, there = hosts
    job = submit_job()
    attempt(here, FIRST)
    store.client.hincrby(f"qlora:job:{job.id}", "requeued_at", -301_000_000)

    assert attempt(there, "checkpoint(2)\nsucceed()") is AttemptEnd.SUCCEEDED

    assert told(store, job) == [(0, 5, "gpu-1")]
    assert store.get(job.id).checkpoint_host == "gpu-2"


def test_a_host_whose_own_checkpoint_is_gone_starts_again_at_once(
    store: Store,
    submit_job: Callable[..., JobRecord],
    hosts: tuple[RunnerSettings, RunnerSettings],
    attempt: Attempt,
    tmp_path: Path,
) -> None:
    here, _ = hosts
    job = submit_job()
    attempt(here, FIRST)

    assert attempt(dataclasses.replace(here, output_root=tmp_path / "moved"), "succeed()") is AttemptEnd.SUCCEEDED
    assert told(store, job) == [(0, 5, "gpu-1")]


def test_a_retry_that_resumes_is_left_to_the_host_that_has_the_former_jobs_checkpoint(
    store: Store,
    submit_job: Callable[..., JobRecord],
    hosts: tuple[RunnerSettings, RunnerSettings],
    attempt: Attempt,
) -> None:
    here, there = hosts
    former = submit_job()
    attempt(here, "checkpoint(5)\nemit('run_failed', code='dataset', message='m')\nsys.exit(1)")
    job = submit_job(retry_of=former.id, resume=True)

    assert attempt(there, "succeed()") is AttemptEnd.DECLINED
    assert attempt(here, "succeed()") is AttemptEnd.SUCCEEDED
    assert told(store, job) == [(5, 5, "gpu-1")]
