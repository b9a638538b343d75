"""Workers on the devices of one host: real processes that are refused, killed, and started again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from runner.jobs import JobState
from runner.spec import RunSpec
from tests.runner.worker_processes import RESUMING, Workers

Eventually = Callable[..., None]
IsGone = Callable[[int], bool]
FakeDriver = Callable[..., Path]

SEES = """
(RUN_DIR / "sees").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
succeed()
"""


def reasons(workers: Workers, job_id: str) -> list[str]:
    events = [stored.event for stored in workers.store.events(job_id)]
    return [event.reason for event in events if event.kind == "job_requeued"]


def test_a_worker_and_its_children_see_only_its_devices(
    workers: Workers,
    child_script: Callable[[str], Path],
    run_spec: RunSpec,
    fake_driver: FakeDriver,
    eventually: Eventually,
) -> None:
    driver = fake_driver(23034, 23034, 81559)
    workers.start(child_script(SEES), driver=driver, devices="2,0")

    job_id = workers.submit(run_spec)

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
    [seen] = workers.folder.glob("outputs/demo/*/attempt-1/sees")
    assert seen.read_text() == f"GPU-{driver.name}-2,GPU-{driver.name}-0"
    [worker] = workers.store.workers()
    assert [gpu.index for gpu in worker.gpus] == [2, 0]
    assert worker.device == "NVIDIA L4 (80 GiB), NVIDIA L4 (22 GiB)"


def test_a_second_worker_on_a_taken_device_is_refused_and_one_beside_it_is_not(
    workers: Workers, child_script: Callable[[str], Path], fake_driver: FakeDriver, eventually: Eventually
) -> None:
    driver, script = fake_driver(23034, 23034), child_script("succeed()")
    workers.start(script, driver=driver, host="host-a", devices="0", name="first")
    eventually(lambda: len(workers.store.workers()) == 1)

    second = workers.start(script, driver=driver, host="host-a")

    assert second.wait(20) != 0
    assert f"GPU 0 (NVIDIA L4, GPU-{driver.name}-0) of host host-a is taken by worker first (pid " in workers.log(2)
    workers.start(script, driver=driver, host="host-a", devices="1")
    eventually(lambda: len(workers.store.workers()) == 2)


def test_a_worker_takes_the_job_of_a_killed_one_on_its_device_back_at_once(  # noqa: PLR0917 - pytest passes them by name
    workers: Workers,
    child_script: Callable[[str], Path],
    run_spec: RunSpec,
    fake_driver: FakeDriver,
    eventually: Eventually,
    is_gone: IsGone,
) -> None:
    """The lease of these workers is two minutes; nobody waits for it."""
    driver, script = fake_driver(23034), child_script(RESUMING)
    first = workers.start(script, driver=driver, host="host-a")
    job_id = workers.submit(run_spec)
    eventually(lambda: "metrics_logged" in workers.kinds(job_id))
    child = int(next(workers.folder.glob("outputs/demo/*/attempt-1/pid")).read_text())

    first.send_signal(signal.SIGKILL)
    first.wait()
    second = workers.start(script, driver=driver, host="host-a")

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
    assert is_gone(child)
    assert [worker.name for worker in workers.store.workers()] == [f"host-a:{second.pid}"]
    assert reasons(workers, job_id) == ["host-lost"]
    job = workers.store.get(job_id)
    assert (job.attempt, [lost.host for lost in job.lost_hosts]) == (2, ["host-a"])


def test_a_worker_without_gpu_and_name_takes_back_what_a_killed_one_had(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script(RESUMING)
    first = workers.start(script, host="host-a")
    job_id = workers.submit(run_spec)
    eventually(lambda: "metrics_logged" in workers.kinds(job_id))

    first.send_signal(signal.SIGKILL)
    first.wait()
    workers.start(script, host="host-a")

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
    assert reasons(workers, job_id) == ["host-lost"]


def test_a_job_that_kills_the_workers_of_one_device_is_given_up_after_the_second(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)")
    job_id = workers.submit(run_spec)
    for _ in range(2):
        assert workers.start(script, host="host-a").wait(20) == -signal.SIGKILL

    workers.start(script, host="host-a")

    eventually(lambda: workers.state(job_id) is JobState.FAILED)
    assert workers.store.get(job_id).error_code == "poison-job"


def test_a_worker_that_ended_in_order_has_left_nothing_to_take_back(
    workers: Workers, child_script: Callable[[str], Path], run_spec: RunSpec, eventually: Eventually
) -> None:
    script = child_script(RESUMING)
    first = workers.start(script, host="host-a")
    job_id = workers.submit(run_spec)
    eventually(lambda: "metrics_logged" in workers.kinds(job_id))

    first.terminate()
    assert first.wait(20) == 0
    workers.start(script, host="host-a")

    eventually(lambda: workers.state(job_id) is JobState.SUCCEEDED)
    assert reasons(workers, job_id) == ["worker-stopped"]
    assert "taken back" not in workers.log(2)
