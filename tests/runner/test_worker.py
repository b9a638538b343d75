from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.embedded_redis import EmbeddedRedis
from runner.jobs import JobState
from runner.queue import issue_ticket, tickets_waiting
from runner.settings import load_settings
from runner.spec import RunSpec
from runner.store import Store
from runner.versions import format_versions, report_versions
from runner.worker import PoolWorker
from tests.runner.worker_processes import RESUMING, Workers, worker_processes

Eventually = Callable[..., None]
IsGone = Callable[[int], bool]


def test_a_worker_runs_a_job_for_a_ticket(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    workers.start(child_script("metrics(1)\nsucceed()"))

    job_id = workers.submit(run_spec)

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
    assert workers.store.get(job_id).host == "host-1"


def test_a_worker_finds_a_job_whose_ticket_got_lost(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    job_id = workers.submit(run_spec, ticket=False)

    workers.start(child_script("succeed()"))

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)


def test_tickets_too_many_run_nothing_twice(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    for _ in range(4):
        issue_ticket(workers.broker, "cpu")
    workers.start(child_script("succeed()"))

    job_ids = [workers.submit(run_spec) for _ in range(2)]

    eventually(lambda: all(workers.state(job_id) is JobState.SUCCEEDED for job_id in job_ids))
    eventually(lambda: tickets_waiting(workers.broker, "cpu") == 0)
    assert [workers.store.get(job_id).attempt for job_id in job_ids] == [1, 1]


def test_a_busy_worker_leaves_the_next_job_to_an_idle_one(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script(
        "metrics(1)\nwhile not (RUN_DIR.parents[2] / 'go').exists():\n    time.sleep(0.02)\nsucceed()"
    )
    workers.start(script)
    workers.start(script)

    job_ids = [workers.submit(run_spec) for _ in range(2)]

    eventually(lambda: all("metrics_logged" in workers.kinds(job_id) for job_id in job_ids))
    assert {workers.store.get(job_id).host for job_id in job_ids} == {"host-1", "host-2"}
    (workers.folder / "outputs" / "go").touch()
    eventually(lambda: all(workers.state(job_id) is JobState.SUCCEEDED for job_id in job_ids))


def test_a_drained_worker_leaves_every_ticket_to_others_and_works_again_afterwards(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script("succeed()")
    workers.store.drain("host-1", "ann")
    workers.start(script)
    first, second = workers.submit(run_spec), workers.submit(run_spec)
    log = workers.folder / "worker-1.log"
    eventually(lambda: "Host host-1 is drained" in log.read_text())
    workers.start(script)

    eventually(lambda: {workers.state(first), workers.state(second)} == {JobState.SUCCEEDED})
    assert {workers.store.get(job_id).host for job_id in (first, second)} == {"host-2"}

    workers.store.undrain("host-1")
    workers.store.drain("host-2", "ann")
    third = workers.submit(run_spec)

    eventually(lambda: workers.state(third) is JobState.SUCCEEDED)
    assert workers.store.get(third).host == "host-1"


def test_a_worker_leaves_what_does_not_fit_its_devices_to_others_and_takes_what_does(
    workers: Workers,
    child_script: Callable[[str], Path],
    run_spec: RunSpec,
    fake_driver: Callable[..., Path],
    eventually: Eventually,
) -> None:
    compute = run_spec.project.compute.model_copy(update={"min_gpu_memory_gib": 40.0})
    large = run_spec.model_copy(update={"project": run_spec.project.model_copy(update={"compute": compute})})
    script = child_script("succeed()")
    workers.start(script, driver=fake_driver(23034))
    wanting = [workers.submit(large) for _ in range(2)]
    log = workers.folder / "worker-1.log"
    eventually(lambda: "fits the devices" in log.read_text())

    small = workers.submit(run_spec)
    workers.start(script, driver=fake_driver(81559))

    eventually(lambda: {workers.state(job_id) for job_id in (small, *wanting)} == {JobState.SUCCEEDED})
    assert {workers.store.get(job_id).host for job_id in wanting} == {"host-2"}


def test_a_worker_shows_what_it_works_on(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    worker = workers.start(child_script("train()"))
    eventually(lambda: [one.job_id for one in workers.store.workers()] == [None])

    job_id = workers.submit(run_spec)

    eventually(lambda: [one.job_id for one in workers.store.workers("cpu")] == [job_id])
    worker.terminate()
    assert worker.wait(20) == 0
    assert workers.store.workers() == []


def test_a_job_that_kills_its_workers_is_given_up_after_the_second(
    hasty_workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script(
        "emit('phase_started', phase='model')\n"
        "while not (RUN_DIR / 'die').exists():\n"
        "    time.sleep(0.02)\n"
        "os.kill(os.getppid(), signal.SIGKILL)"
    )
    job_id = hasty_workers.submit(run_spec)
    for attempt in (1, 2):
        worker = hasty_workers.start(script)
        eventually(lambda told=attempt: hasty_workers.kinds(job_id).count("phase_started") == told)
        (hasty_workers.folder / "outputs" / "demo" / job_id / f"attempt-{attempt}" / "die").touch()
        assert worker.wait(20) == -signal.SIGKILL

    hasty_workers.start(script)

    eventually(lambda: hasty_workers.state(job_id) is JobState.FAILED)
    job = hasty_workers.store.get(job_id)
    assert (job.error_code, job.attempt) == ("poison-job", 2)
    assert [(lost.host, lost.phase) for lost in job.lost_hosts] == [("host-1", "model"), ("host-2", "model")]


def test_a_worker_told_to_stop_gives_its_job_to_another_one(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script(RESUMING)
    first = workers.start(script)
    job_id = workers.submit(run_spec)
    eventually(lambda: "metrics_logged" in workers.kinds(job_id))

    first.terminate()

    assert first.wait(20) == 0
    assert workers.state(job_id) is JobState.QUEUED
    workers.start(script)
    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
    job = workers.store.get(job_id)
    assert (job.attempt, job.host) == (2, "host-2")
    assert workers.kinds(job_id).count("job_requeued") == 1


def test_a_second_signal_ends_a_worker_at_once_with_its_child(
    workers: Workers,
    child_script: Callable[[str], Path],
    run_spec: RunSpec,
    eventually: Eventually,
    is_gone: IsGone,
) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmetrics(os.getpid())\ntime.sleep(100)"
    worker = workers.start(child_script(body))
    job_id = workers.submit(run_spec)
    eventually(lambda: "metrics_logged" in workers.kinds(job_id))
    child = next(stored.event.step for stored in workers.store.events(job_id) if stored.event.kind == "metrics_logged")
    worker.send_signal(signal.SIGINT)
    eventually(lambda: b" stops." in (workers.folder / "worker-1.log").read_bytes())

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(20) == 1
    eventually(lambda: is_gone(child))


def test_a_killed_workers_job_resumes_on_another_host(
    hasty_workers: Workers,
    child_script: Callable[[str], Path],
    run_spec: RunSpec,
    eventually: Eventually,
    is_gone: IsGone,
) -> None:
    script = child_script(RESUMING)
    first = hasty_workers.start(script)
    job_id = hasty_workers.submit(run_spec)
    eventually(lambda: "metrics_logged" in hasty_workers.kinds(job_id))
    child = int(next(hasty_workers.folder.glob("outputs/demo/*/attempt-1/pid")).read_text())
    hasty_workers.start(script)

    first.kill()

    eventually(lambda: hasty_workers.state(job_id) is JobState.SUCCEEDED, within_s=40)
    assert is_gone(child)
    events = [stored.event for stored in hasty_workers.store.events(job_id)]
    assert [event.reason for event in events if event.kind == "job_requeued"] == ["host-lost"]
    assert [event.resumed_from_step for event in events if event.kind == "training_started"] == [0, 5]
    assert hasty_workers.store.get(job_id).host == "host-2"


def test_an_idle_worker_outlives_a_restart_of_redis(
    tmp_path: Path, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    with EmbeddedRedis(tmp_path / "own") as server, worker_processes(server.url, tmp_path) as workers:
        workers.start(child_script("succeed()"))
        eventually(lambda: len(workers.store.workers()) == 1)
        server.stop()
        server.start()

        job_id = workers.submit(run_spec)

        eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)


def test_a_worker_stops_well_while_redis_is_away(
    tmp_path: Path, child_script: Callable[[str], Path], eventually: Eventually
) -> None:
    with EmbeddedRedis(tmp_path / "own") as server, worker_processes(server.url, tmp_path) as workers:
        worker = workers.start(child_script("succeed()"))
        eventually(lambda: len(workers.store.workers()) == 1)
        server.stop()

        worker.terminate()

        assert worker.wait(40) == 0


def test_a_worker_logs_its_libraries_when_it_starts(
    workers: Workers, child_script: Callable[[str], Path], eventually: Eventually
) -> None:
    workers.start(child_script("succeed()"))
    eventually(lambda: len(workers.store.workers()) == 1)
    log = (workers.folder / "worker-1.log").read_text()
    assert format_versions(report_versions(workers.store.workers()[0].device)) in log


def test_a_worker_whose_libraries_cannot_work_together_is_refused_before_it_looks_for_redis(
    pretend_installed: Callable[[Path, str, str], None], tmp_path: Path
) -> None:
    pretend_installed(tmp_path, "peft", "0.17.1")
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1/0"}

    worker = subprocess.run(
        [sys.executable, "-m", "runner", "worker", "--pool", "cpu"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert worker.returncode == 1
    assert "peft 0.17.1 cannot work together" in worker.stderr
    assert f"{sys.executable} -m pip install peft==" in worker.stderr
    assert "Traceback" not in worker.stderr


def test_nobodys_environment_changes_how_many_tickets_a_worker_holds(
    store: Store, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.queue_lengths() == {}
    monkeypatch.setattr("dramatiq.worker.QUEUE_PREFETCH", 50)
    settings = load_settings({"QLORA_STATE_DIR": str(tmp_path)})

    worker = PoolWorker(settings, valkey_url, pool="cpu", name="w")
    worker._dramatiq.start()

    assert worker._dramatiq.consumers["qlora.cpu"].prefetch == 1
    worker._dramatiq.stop()
    worker._broker.close()
    worker._broker.client.close()
    worker._store.close()
