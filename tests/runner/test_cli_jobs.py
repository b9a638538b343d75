"""The verbs of `python -m runner` that ask about jobs and steer pools, against a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from dramatiq.brokers.redis import RedisBroker

from runner.__main__ import main
from runner.events import PhaseStarted
from runner.job_events import JobFailed
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.pools import Gpu, Hindrance, Obstacle, PoolLimits
from runner.projects import load_project
from runner.queue import tickets_waiting
from runner.reports import Phase
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


# --- hosts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def inventory(store: Store, some_worker: WorkerInfo) -> None:
    """Three live workers: one at work, one on a drained host, one that somebody else's process keeps from its GPU."""
    l4 = Gpu(index=1, uuid="GPU-aa", name="NVIDIA L4", memory_mib=23034)
    busy = Hindrance(obstacle=Obstacle.GPU_BUSY, why="GPU 1 (NVIDIA L4, GPU-aa) is used by pid 7 of user bob.")
    room = {"disk_free_bytes": 5 << 30, "memory_bytes": 16 << 30, "memory_free_bytes": 12 << 30}
    for name, host, more in (
        ("a:1", "host-a", {"job_id": "demo-k3x7q", **room}),
        ("b:1", "host-b", {}),
        ("c:1", "host-c", {"gpus": (l4,), "device": "NVIDIA L4 (22 GiB)", "pool": "gpu", "hindrance": busy, **room}),
    ):
        store.announce(some_worker.model_copy(update={"name": name, "host": host, **more}))
    store.drain("host-b", "ann")


@pytest.mark.usefixtures("inventory")
def test_hosts_lists_every_worker_with_devices_room_state_and_what_keeps_it(capsys: Capture) -> None:
    heading, *rows = run("hosts", capsys=capsys).splitlines()

    assert re.split(r"\s{2,}", heading) == [
        "HOST", "WORKER", "POOL", "STATE", "JOB", "DEVICES", "MEMORY", "DISK LEFT", "STACK", "SEEN",
    ]  # fmt: skip
    working, drained, busy, *below = rows
    assert re.split(r"\s{2,}", working)[:8] == [
        "host-a", "a:1", "cpu", "working", "demo-k3x7q", "cpu (2 threads)", "12.0 of 16.0 GiB", "5.0 GiB",
    ]  # fmt: skip
    assert re.split(r"\s{2,}", drained)[:6] == ["host-b", "b:1", "cpu", "drained", "cpu (2 threads)", "unknown"]
    assert re.split(r"\s{2,}", busy)[:5] == ["host-c", "c:1", "gpu", "gpu-busy", "1: NVIDIA L4 (22 GiB)"]
    assert below == [
        "⚠️ c:1: GPU 1 (NVIDIA L4, GPU-aa) is used by pid 7 of user bob.",
        "Host host-b takes no new jobs, drained by ann",
    ]


@pytest.mark.usefixtures("inventory")
def test_hosts_of_one_pool_as_json(capsys: Capture) -> None:
    [worker] = json.loads(run("hosts", "--json", "--pool", "gpu", capsys=capsys))

    assert (worker["name"], worker["state"], worker["disk_free_bytes"]) == ("c:1", "gpu-busy", 5 << 30)
    assert worker["gpus"] == [{"index": 1, "uuid": "GPU-aa", "name": "NVIDIA L4", "memory_mib": 23034}]
    assert worker["hindrance"]["obstacle"] == "gpu-busy"


def test_without_a_worker_hosts_says_how_to_start_one(capsys: Capture) -> None:
    assert "python -m runner worker" in run("hosts", capsys=capsys)


# --- jobs, job, logs -------------------------------------------------------------------------------------------------


def test_the_latest_jobs_are_listed_with_what_keeps_new_ones_from_starting(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, capsys: Capture
) -> None:
    failed, running, queued = (submit_job() for _ in range(3))
    claim = store.claim(some_worker.pool, some_worker)
    assert claim is not None
    store.finish(claim, JobFailed(code="dataset", message="m"))
    claim = store.claim(some_worker.pool, some_worker)
    assert claim is not None
    store.append(claim, PhaseStarted(phase=Phase.MODEL))
    store.freeze("new driver", "ann")

    lines = run("jobs", capsys=capsys).splitlines()

    assert lines[0] == "Frozen by ann, nothing new starts: new driver"
    assert [line.split()[:2] for line in lines[2:]] == [
        [queued.id, "queued"],
        [running.id, "running"],
        [failed.id, "failed"],
    ]
    assert [line.partition(" ago  ")[2].strip() for line in lines[2:]] == ["position 1", "model on host-a", "dataset"]


def test_a_queued_job_is_stopped_at_once_and_a_running_one_is_asked_to(
    store: Store, submit_job: Submit, some_worker: WorkerInfo, capsys: Capture
) -> None:
    running, queued = submit_job(), submit_job()
    assert store.claim(some_worker.pool, some_worker) is not None

    assert run("stop", queued.id, capsys=capsys) == f"Job {queued.id} is cancelled.\n"
    assert run("stop", running.id, capsys=capsys) == f"Job {running.id} writes a checkpoint on host-a and ends.\n"

    assert [store.get(job.id).state for job in (running, queued)] == [JobState.STOPPING, JobState.CANCELLED]
    assert "is over" in run("stop", queued.id, capsys=capsys, status=1)


def test_one_job_is_told_by_the_start_of_its_id(store: Store, submit_job: Submit, capsys: Capture) -> None:
    former = store.request_stop(submit_job().id, "U2")
    job = submit_job(retry_of=former.id, priority="high")

    facts = dict(line.split(None, 1) for line in run("job", job.id[:-1], capsys=capsys).splitlines())

    assert (facts["job"], facts["state"], facts["pool"]) == (job.id, "queued, position 1", "cpu, priority high")
    assert facts["retry"] == f"of    {former.id}, from the beginning"
    assert "There is no job" in run("job", "other-zzzzz", capsys=capsys, status=1)


def test_the_end_of_the_newest_log_is_shown_where_it_lies(
    submit_job: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("QLORA_OUTPUT_ROOT", str(tmp_path))
    job = submit_job()
    assert "It has not run yet." in run("logs", job.id, capsys=capsys, status=1)
    attempt = tmp_path / "demo" / job.id / "attempt-1"
    attempt.mkdir(parents=True)
    (attempt / "train.log").write_text("one\ntwo\x1b[31m\nthree\n")

    assert run("logs", job.id, "--lines", "2", capsys=capsys).splitlines()[1] == "three"
    assert "\x1b" not in run("logs", job.id, capsys=capsys)


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


def test_limits_of_a_pool_that_nobody_has_heard_of_say_so(submit_job: Submit, capsys: Capture) -> None:
    submit_job()

    assert main(["limits", "cpuu", "max_queued=5"]) == 0
    assert "Did you mean cpu?" in capsys.readouterr().err
    assert main(["limits", "cpu", "max_queued=5"]) == 0
    assert capsys.readouterr().err == ""


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
