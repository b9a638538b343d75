"""The worker's side of a standby child, with a small script in the training's place; the real one is trained with in
tests/training/test_standby.py."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from runner.child import Child
from runner.events import RunFailed, RunSucceeded
from runner.settings import ChildLimits, RunnerSettings
from runner.standby import Standby
from tests.runner.conftest import PROLOGUE

Eventually = Callable[..., None]
IsGone = Callable[[int], bool]
StandingBy = Callable[..., Standby]

WAITS = """
import json, os, socket, sys
WAITED = sys.argv[1] == "--standby"
if WAITED:
    control = socket.socket(fileno=int(sys.argv[2]))
    print("importing", flush=True)
    %s
    control.send(b"ready")
    job, descriptors, *_ = socket.recv_fds(control, 1 << 16, 1)
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[0], 2)
    sys.argv[1:] = json.loads(job)
"""


@pytest.fixture
def standing_by(settings: RunnerSettings, tmp_path: Path) -> Iterator[StandingBy]:
    """Make a standby of a script: what it does while it imports, and what with its job."""
    with ExitStack() as stack:

        def make(job: str = "succeed()", *, imports: str = "pass", **limits: int) -> Standby:
            script = tmp_path / "waits.py"
            script.write_text(WAITS % imports + PROLOGUE + "\nstop_at_the_next_step()\n" + textwrap.dedent(job))
            limited = dataclasses.replace(settings, child=ChildLimits(**limits))
            return stack.enter_context(Standby(limited, (sys.executable, str(script))))

        yield make


def waiting_pids() -> list[int]:
    """Children of ours that wait for a job."""
    found = []
    for process in psutil.Process().children():
        try:
            if "--standby" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def ready(caplog: pytest.LogCaptureFixture, eventually: Eventually) -> Callable[[int], int]:
    """Wait until so many standbys have got ready; the pid of the one that waits now."""
    caplog.set_level("INFO", "runner.standby")

    def wait(count: int) -> int:
        eventually(lambda: caplog.text.count("standby child is ready") == count)
        [pid] = waiting_pids()
        return pid

    return wait


def run_to_the_end(child: Child) -> object:
    with child:
        for _ in child.events():
            pass
        return child.end()


def test_a_job_goes_to_the_child_that_waits(
    standing_by: StandingBy, ready: Callable[[int], int], tmp_path: Path
) -> None:
    standby = standing_by("print('working', WAITED)\nsucceed()")
    pid = ready(1)

    child = standby(tmp_path)

    assert child.pid == pid
    assert isinstance(run_to_the_end(child), RunSucceeded)
    assert (tmp_path / "train.log").read_text() == "importing\nworking True\n"


def test_the_next_one_is_started_when_the_job_is_over(
    standing_by: StandingBy, ready: Callable[[int], int], tmp_path: Path
) -> None:
    standby = standing_by("metrics(1)\nwhile not (RUN_DIR / 'go').exists():\n    time.sleep(0.02)\nsucceed()")
    first = ready(1)
    with standby(tmp_path) as child:
        assert next(event for event in child.events() if event is not None).kind == "metrics_logged"
        assert waiting_pids() == [first]  # It is the one that has the job now.
        (tmp_path / "go").touch()
        for _ in child.events():
            pass
        assert isinstance(child.end(), RunSucceeded)

    assert ready(2) != first


def test_one_that_is_not_ready_gets_the_job_all_the_same(standing_by: StandingBy, tmp_path: Path) -> None:
    imports = f"while not os.path.exists({str(tmp_path / 'go')!r}): pass"
    standby = standing_by("print(WAITED)\nsucceed()", imports=imports)
    [pid] = waiting_pids()

    child = standby(tmp_path)
    (tmp_path / "go").touch()

    assert child.pid == pid
    assert isinstance(run_to_the_end(child), RunSucceeded)
    assert (tmp_path / "train.log").read_text().endswith("True\n")


def test_one_that_was_killed_is_replaced(
    standing_by: StandingBy, ready: Callable[[int], int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    standby = standing_by()
    os.kill(ready(1), signal.SIGKILL)
    replaced = ready(2)

    child = standby(tmp_path)

    assert child.pid == replaced
    assert isinstance(run_to_the_end(child), RunSucceeded)
    assert "The standby child has died: importing" in caplog.text


def test_one_that_cannot_import_is_told_and_not_tried_again_before_the_next_job_is_over(
    standing_by: StandingBy, tmp_path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    standby = standing_by(imports="raise SystemExit('no such library')")
    eventually(lambda: "no such library" in caplog.text)
    assert waiting_pids() == []

    assert isinstance(run_to_the_end(standby(tmp_path)), RunSucceeded)

    eventually(lambda: caplog.text.count("The standby child has died") == 2)


def test_one_that_dies_with_its_job_is_a_child_that_died(
    standing_by: StandingBy, ready: Callable[[int], int], tmp_path: Path
) -> None:
    standby = standing_by("print('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    ready(1)

    end = run_to_the_end(standby(tmp_path))

    assert isinstance(end, RunFailed)
    assert end.code == "child-died"
    assert (end.hint or "").endswith("last words")


def test_one_with_another_environment_than_a_child_would_have_now_is_not_used(
    standing_by: StandingBy,
    ready: Callable[[int], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_gone: IsGone,
) -> None:
    standby = standing_by("print(WAITED, os.environ['CUDA_VISIBLE_DEVICES'])\nsucceed()")
    former = ready(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    child = standby(tmp_path)

    assert is_gone(former)
    assert isinstance(run_to_the_end(child), RunSucceeded)
    assert (tmp_path / "train.log").read_text() == "False 1\n"
    ready(2)


def test_one_that_holds_too_much_memory_is_ended_and_the_worker_goes_on_without(
    standing_by: StandingBy, tmp_path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    standby = standing_by("print(WAITED)\nsucceed()", imports="ballast = b'x' * (64 << 20)", standby_bytes=32 << 20)

    eventually(lambda: "more than QLORA_STANDBY_MB = 32" in caplog.text)
    eventually(lambda: waiting_pids() == [])
    assert isinstance(run_to_the_end(standby(tmp_path)), RunSucceeded)

    assert (tmp_path / "train.log").read_text() == "False\n"
    assert waiting_pids() == []


def test_sigterm_reaches_the_job_of_one_that_waited(
    standing_by: StandingBy, ready: Callable[[int], int], tmp_path: Path
) -> None:
    standby = standing_by("train()")
    ready(1)
    with standby(tmp_path) as child:
        kinds = []
        for event in child.events():
            if event is not None:
                kinds.append(event.kind)
                child.ask_to_stop()

    assert kinds[-2:] == ["checkpoint_saved", "run_interrupted"]


def test_closing_leaves_neither_process_nor_descriptor(
    standing_by: StandingBy, ready: Callable[[int], int], tmp_path: Path, eventually: Eventually
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    standby = standing_by()
    ready(1)
    run_to_the_end(standby(tmp_path))
    ready(2)

    with standby:
        pass

    assert waiting_pids() == []
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) == before)


@pytest.mark.timeout(120)
def test_a_killed_worker_takes_its_standby_along(
    valkey_url: str, tmp_path: Path, eventually: Eventually, is_gone: IsGone
) -> None:
    environ = {"PATH": os.environ["PATH"], "REDIS_URL": valkey_url, "QLORA_STATE_DIR": str(tmp_path)}
    worker = subprocess.Popen([sys.executable, "-m", "runner", "worker", "--pool", "cpu", "--no-canary"], env=environ)
    group: list[psutil.Process] = []

    def has_a_standby() -> bool:
        group[:] = psutil.Process(worker.pid).children(recursive=True)
        return any("--standby" in process.cmdline() for process in group)

    try:
        eventually(has_a_standby, within_s=60)
    finally:
        worker.kill()
        worker.wait()

    eventually(lambda: all(is_gone(process.pid) for process in group))
