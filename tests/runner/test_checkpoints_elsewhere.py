"""Two hosts, each with an output root of its own, or with one that they share: where a requeued job goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.child import Spawn
from runner.events import CheckpointChosen
from runner.job_events import JobDeclined
from runner.jobs import JobRecord, WorkerInfo
from runner.settings import RunnerSettings
from runner.store import Store
from runner.supervisor import AttemptEnd, run_attempt

FIRST = "checkpoint(5)\nemit('run_interrupted', step=5, checkpoint='x')\nsys.exit(3)"
Submit = Callable[..., JobRecord]


@dataclasses.dataclass(frozen=True)
class TwoHosts:
    """Two hosts of one pool that share no disk."""

    store: Store
    here: RunnerSettings
    there: RunnerSettings
    worker: WorkerInfo
    scripted: Callable[[str], Spawn]

    def attempt(self, host: RunnerSettings, script: str) -> AttemptEnd:
        """Let a host claim the job and run a scripted child."""
        claim = self.store.claim("cpu", self.worker.model_copy(update={"name": host.host, "host": host.host}))
        assert claim is not None
        return run_attempt(self.store, claim, host, stopping=threading.Event(), spawn=self.scripted(script))

    def told(self, job: JobRecord) -> list[tuple[int, int, str]]:
        """What the job's attempts have told of where they begin."""
        events = [stored.event for stored in self.store.events(job.id)]
        return [(one.step, one.newest_step, one.newest_host) for one in events if isinstance(one, CheckpointChosen)]


@pytest.fixture
def hosts(
    store: Store, settings: RunnerSettings, some_worker: WorkerInfo, scripted: Callable[[str], Spawn], tmp_path: Path
) -> TwoHosts:
    return TwoHosts(
        store,
        here=dataclasses.replace(settings, output_root=tmp_path / "a", host="gpu-1"),
        there=dataclasses.replace(settings, output_root=tmp_path / "b", host="gpu-2"),
        worker=some_worker,
        scripted=scripted,
    )


def test_on_a_shared_file_system_any_host_resumes_at_once_and_says_from_where(
    hosts: TwoHosts, submit_job: Submit
) -> None:
    job = submit_job()
    assert hosts.attempt(hosts.here, FIRST) is AttemptEnd.REQUEUED
    assert hosts.told(job) == []
    assert hosts.store.get(job.id).checkpoint_host == "gpu-1"

    end = hosts.attempt(dataclasses.replace(hosts.there, output_root=hosts.here.output_root), "succeed()")

    assert end is AttemptEnd.SUCCEEDED
    assert hosts.told(job) == [(5, 5, "gpu-1")]


def test_on_local_disks_a_job_waits_for_the_host_that_has_its_checkpoint(hosts: TwoHosts, submit_job: Submit) -> None:
    job = submit_job()
    hosts.attempt(hosts.here, FIRST)

    assert hosts.attempt(hosts.there, "succeed()") is AttemptEnd.DECLINED

    declined = hosts.store.events(job.id)[-1].event
    assert isinstance(declined, JobDeclined)
    assert (declined.host, declined.reason) == ("gpu-2", "checkpoint-elsewhere")
    assert "its checkpoint of step 5 lies on host gpu-1" in declined.message
    assert not hosts.there.output_root.exists()
    assert hosts.attempt(hosts.here, "succeed()") is AttemptEnd.SUCCEEDED
    assert hosts.told(job) == [(5, 5, "gpu-1")]


def test_when_it_has_waited_long_enough_another_host_starts_it_again_and_says_why(
    hosts: TwoHosts, submit_job: Submit
) -> None:
    job = submit_job()
    hosts.attempt(hosts.here, FIRST)
    hosts.store.client.hincrby(f"qlora:job:{job.id}", "requeued_at", -301_000_000)

    assert hosts.attempt(hosts.there, "checkpoint(2)\nsucceed()") is AttemptEnd.SUCCEEDED

    assert hosts.told(job) == [(0, 5, "gpu-1")]
    assert hosts.store.get(job.id).checkpoint_host == "gpu-2"


def test_a_host_whose_own_checkpoint_is_gone_starts_again_at_once(
    hosts: TwoHosts, submit_job: Submit, tmp_path: Path
) -> None:
    job = submit_job()
    hosts.attempt(hosts.here, FIRST)

    end = hosts.attempt(dataclasses.replace(hosts.here, output_root=tmp_path / "moved"), "succeed()")

    assert end is AttemptEnd.SUCCEEDED
    assert hosts.told(job) == [(0, 5, "gpu-1")]


def test_a_retry_that_resumes_is_left_to_the_host_that_has_the_former_jobs_checkpoint(
    hosts: TwoHosts, submit_job: Submit
) -> None:
    former = submit_job()
    hosts.attempt(hosts.here, "checkpoint(5)\nemit('run_failed', code='dataset', message='m')\nsys.exit(1)")
    job = submit_job(retry_of=former.id, resume=True)

    assert hosts.attempt(hosts.there, "succeed()") is AttemptEnd.DECLINED
    assert hosts.attempt(hosts.here, "succeed()") is AttemptEnd.SUCCEEDED
    assert hosts.told(job) == [(5, 5, "gpu-1")]
