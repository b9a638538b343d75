"""Workers that take no job until their host is ready, and say why."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from dramatiq.brokers.redis import RedisBroker

from runner.jobs import JobRecord, JobState
from runner.queue import issue_ticket
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.store import Store
from tests.runner.worker_processes import Workers

Eventually = Callable[..., None]
Submit = Callable[..., JobRecord]
Working = Callable[..., AbstractContextManager[None]]


def why(store: Store) -> str:
    """What keeps the one worker, as the inventory tells it; its state comes first."""
    return "".join(
        f"{one.state(())}: {one.hindrance.why if one.hindrance else 'nothing'}" for one in store.workers("cpu")
    )


def test_a_host_whose_canary_fails_takes_no_job_says_why_and_takes_it_once_it_has_passed(  # noqa: PLR0917 - fixtures
    store: Store,
    broker: RedisBroker,
    settings: RunnerSettings,
    submit_job: Submit,
    valkey_url: str,
    working: Working,
    eventually: Eventually,
) -> None:
    mended = threading.Event()
    tries = []

    def try_out() -> str | None:
        tries.append(1)
        return None if mended.is_set() else "CUDA error: no kernel image is available."

    job = submit_job()
    issue_ticket(broker, job.pool)
    hasty = dataclasses.replace(settings, canary_retry_s=0.05)
    with working(valkey_url, "succeed()", hasty, try_out):
        eventually(lambda: why(store) == "unhealthy: The canary failed: CUDA error: no kernel image is available.")
        eventually(lambda: len(tries) > 2)
        assert store.get(job.id).state is JobState.QUEUED

        mended.set()

        eventually(lambda: store.get(job.id).state is JobState.SUCCEEDED)
        eventually(lambda: why(store) == "idle: nothing")


def test_a_worker_takes_no_job_while_its_canary_runs(  # noqa: PLR0917 - fixtures
    store: Store,
    broker: RedisBroker,
    settings: RunnerSettings,
    submit_job: Submit,
    valkey_url: str,
    working: Working,
    eventually: Eventually,
) -> None:
    passed = threading.Event()
    job = submit_job()
    issue_ticket(broker, job.pool)

    def try_out() -> str | None:
        passed.wait()
        return None

    with working(valkey_url, "succeed()", settings, try_out):
        try:
            eventually(lambda: why(store).startswith("checking: "))
            with working(valkey_url, "succeed()", dataclasses.replace(settings, host="host-b")):
                eventually(lambda: store.get(job.id).state is JobState.SUCCEEDED)
        finally:
            passed.set()
    assert store.get(job.id).host == "host-b"


def test_a_worker_whose_disk_is_nearly_full_leaves_the_job_to_another_one(  # noqa: PLR0917 - fixtures
    store: Store,
    broker: RedisBroker,
    settings: RunnerSettings,
    submit_job: Submit,
    valkey_url: str,
    working: Working,
    eventually: Eventually,
) -> None:
    job = submit_job()
    issue_ticket(broker, job.pool)
    full = dataclasses.replace(settings, min_free_disk_gib=1e9)
    with working(valkey_url, "succeed()", full):
        eventually(lambda: "GiB are left under" in why(store))
        other = dataclasses.replace(settings, host="host-b")
        with working(valkey_url, "succeed()", other):
            eventually(lambda: store.get(job.id).state is JobState.SUCCEEDED)
    assert store.get(job.id).host == "host-b"


def test_a_worker_waits_until_nobody_else_is_on_its_gpu(
    workers: Workers,
    child_script: Callable[[str], Path],
    run_spec: RunSpec,
    fake_driver: Callable[..., Path],
    eventually: Eventually,
) -> None:
    driver = fake_driver(23034)
    (driver / "compute-apps").write_text(f"GPU-{driver.name}-0, 1, 18054, /usr/bin/python3\n")
    workers.start(child_script("succeed()"), driver=driver)
    job_id = workers.submit(run_spec)

    eventually(lambda: why(workers.store).startswith("gpu-busy: "))
    assert f"GPU 0 (NVIDIA L4, GPU-{driver.name}-0) is used by pid 1 of user " in why(workers.store)
    assert workers.state(job_id) is JobState.QUEUED

    (driver / "compute-apps").write_text("")

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
