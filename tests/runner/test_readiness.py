"""What a host looks at before it takes a job. The driver's answers are as its documentation shows them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner.gpu_processes import GpuProcess, parse_gpu_processes, who_uses
from runner.pools import Gpu, Obstacle
from runner.readiness import Readiness
from runner.settings import RunnerSettings

FakeDriver = Callable[..., Path]


@pytest.fixture
def driver(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver of a host with two GPUs."""
    folder = fake_driver(23034, 23034)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def gpu(driver: Path, index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{driver.name}-{index}", name="NVIDIA L4", memory_mib=23034)


@pytest.mark.parametrize(
    ("answer", "processes"),
    [
        ("", []),
        (
            "GPU-aa, 4711, 18054, /usr/bin/python3\nGPU-bb, 12, 300, ./a, b\n",
            [
                GpuProcess(gpu_uuid="GPU-aa", pid=4711, memory_mib=18054, command="/usr/bin/python3"),
                GpuProcess(gpu_uuid="GPU-bb", pid=12, memory_mib=300, command="./a, b"),
            ],
        ),
        (
            "GPU-aa, 4711, [N/A], [Insufficient Permissions]\n",
            [GpuProcess(gpu_uuid="GPU-aa", pid=4711, memory_mib=None, command="[Insufficient Permissions]")],
        ),
        ("No running processes found\n", []),
    ],
)
def test_the_driver_s_list_of_processes_is_read_line_by_line(answer: str, processes: list[GpuProcess]) -> None:
    assert list(parse_gpu_processes(answer)) == processes


def test_somebody_else_s_process_on_a_gpu_is_told_with_user_program_and_memory(driver: Path) -> None:
    other = os.getppid()
    (driver / "compute-apps").write_text(f"GPU-{driver.name}-1, {other}, 18054, /usr/bin/python3\n")

    told = who_uses([gpu(driver, 0), gpu(driver, 1)])

    assert told == (
        f"GPU 1 (NVIDIA L4, GPU-{driver.name}-1) is used by pid {other} of user {psutil.Process(other).username()}, "
        "/usr/bin/python3, 18054 MiB"
    )
    # It is on another GPU than this worker's.
    assert who_uses([gpu(driver, 0)]) is None


def test_a_worker_s_own_processes_do_not_keep_it_from_its_gpu(driver: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        (driver / "compute-apps").write_text(
            f"GPU-{driver.name}-0, {child.pid}, 500, python\nGPU-{driver.name}-0, {os.getpid()}, 500, python\n"
        )

        assert who_uses([gpu(driver, 0)]) is None
        child.kill()


def test_a_driver_that_does_not_answer_is_no_free_gpu(driver: Path) -> None:
    (driver / "compute-apps").unlink()

    told = who_uses([gpu(driver, 0)])

    assert told is not None
    assert "does not say who uses the GPUs" in told
    assert who_uses([]) is None


def test_a_host_takes_no_jobs_while_its_disk_is_nearly_full(settings: RunnerSettings) -> None:
    assert Readiness(dataclasses.replace(settings, min_free_disk_gib=0.001), ()).hindrance() is None

    found = Readiness(dataclasses.replace(settings, min_free_disk_gib=1e9), ()).hindrance()

    assert found is not None
    assert found.obstacle is Obstacle.UNHEALTHY
    assert f"GiB are left under {settings.output_root}, QLORA_MIN_FREE_DISK_GIB asks for 1e+09" in found.why
