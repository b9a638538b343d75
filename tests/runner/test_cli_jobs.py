"""The verbs of `python -m runner` that ask about jobs and steer pools, against a real server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from dramatiq.brokers.redis import RedisBroker

from runner.__main__ import main
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.pools import PoolLimits
from runner.projects import load_project
from runner.queue import tickets_waiting
from runner.store import Store


@pytest.fixture(autouse=True)
def _address(store: Store, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.jobs() == []
    monkeypatch.setenv("REDIS_URL", valkey_url)


PROJECTS = Path(__file__).parents[2] / "projects"
Submit = Callable[..., JobRecord]
Capture = pytest.CaptureFixture[str]


def run(*words: str, capsys: Capture, status: int = 0) -> str:
    """Run a verb; returns what it says."""
    assert main(words) == status
    out = capsys.readouterr()
    return out.err if status else out.out


# --- freeze and drain ------------------------------------------------------------------------------------------------


def test_freezing_says_what_goes_on_and_unfreezing_what_was_frozen(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, capsys: Capture
) -> None:
    submit_job()
    submit_job()
    store.claim(some_worker.pool, some_worker)

    frozen = run("freeze", "new", "driver", capsys=capsys)

    assert "Frozen: new driver" in frozen
    assert "Running: 1, waiting: 1." in frozen
    told = store.frozen()
    assert told is not None
    assert told.reason == "new driver"
    assert "new driver" in run("unfreeze", capsys=capsys)
    assert store.frozen() is None
    assert run("unfreeze", capsys=capsys) == "Nothing was frozen.\n"


def test_draining_says_what_goes_on_there(store: Store, some_worker: WorkerInfo, capsys: Capture) -> None:
    store.announce(some_worker.model_copy(update={"job_id": "demo-aaaaa"}))

    assert "worker host-a:1: goes on with demo-aaaaa" in run("drain", "host-a", capsys=capsys)
    assert list(store.drained()) == ["host-a"]
    assert "Drained are host-a." in run("undrain", "host-b", capsys=capsys, status=2)
    run("undrain", "host-a", capsys=capsys)
    assert store.drained() == {}


def test_draining_a_host_that_nobody_has_heard_of_says_so(
    store: Store, some_worker: WorkerInfo, capsys: Capture
) -> None:
    store.announce(some_worker)

    assert "Did you mean host-a?" in run("drain", "hosta", capsys=capsys)


# --- retry -----------------------------------------------------------------------------------------------------------


def test_a_job_is_queued_again_with_changes(
    store: Store, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(PROJECTS))
    spec = load_project(PROJECTS, "demo")
    former = store.submit(
        spec, submitted_by="U1", origin={"channel": "C1", "thread_ts": "1.2"}, request_id="r", priority="low"
    )
    assert "is queued" in run("retry", former.id, capsys=capsys, status=1)
    store.request_stop(former.id, "U2")

    said = run("retry", "demo", "lora.r=4", capsys=capsys)

    [job] = store.jobs(states=[JobState.QUEUED])
    assert said.startswith(f"Queued {job.id} in pool local, a retry of {former.id}.\nPosition 1.")
    assert (job.retry_of, job.priority, job.origin) == (former.id, "low", {"channel": "C1"})
    assert (job.spec.project.lora.r, job.spec.overrides) == (4, {"lora.r": "4"})
    assert tickets_waiting(broker, "local") == 1
    assert "no checkpoint" in run("retry", former.id, "--resume", capsys=capsys, status=1)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_limits_are_set_one_by_one_and_shown(store: Store, capsys: Capture) -> None:
    run("limits", "gpu", "max_running_per_user=2", "max_queued=50", capsys=capsys)
    shown = run("limits", "gpu", "max_queued=none", capsys=capsys)

    assert store.limits("gpu") == PoolLimits(max_running_per_user=2)
    assert re.findall(r"(\w+) +(\w+)\n", shown) == [
        ("max_running", "none"),
        ("max_running_per_user", "2"),
        ("max_queued", "none"),
        ("max_queued_per_user", "none"),
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("max_runing=2", "Did you mean max_running?"),
        ("max_running", "max_running=4"),
        ("max_running=0", "max_running: not a whole number of jobs, 1 or more."),
        ("max_running=few", "max_running: not a whole number"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_and_changes_nothing(
    store: Store, capsys: Capture, change: str, told: str
) -> None:
    assert told in run("limits", "gpu", "max_queued=5", change, capsys=capsys, status=2)
    assert store.limits("gpu") == PoolLimits()
