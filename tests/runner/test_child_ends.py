"""Every way in which a child can end badly: what its job says, and that nothing of it is left."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from runner.child import Child, Spawn
from runner.deaths import kernel_kills
from runner.events import RunFailed
from runner.group_work import members
from runner.jobs import JobState
from runner.process_group import EVENTS_FD
from runner.settings import ChildLimits, RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.store import Store
from runner.supervisor import AttemptEnd
from tests.runner.attempt_bench import Bench
from tests.runner.small_disk import small_disk
from tests.runner.small_memory import small_memory

Scripted = Callable[[str], Spawn]
Eventually = Callable[..., None]

HELPER = """
helper = subprocess.Popen(["sleep", "600"])
metrics(helper.pid)
print("last words", flush=True)
"""
ENDS = {
    "an import that fails": ("import no_such_library", "child-died", "exit status 1", "No module named"),
    "an exit without a word": ("sys.exit(3)", "child-died", "exit status 3", "last words"),
    "an end that looks good": ("sys.exit(0)", "child-died", "exit status 0", "last words"),
    "a segfault": ("import ctypes; ctypes.string_at(0)", "child-died", "SIGSEGV", "Segmentation fault"),
    "a kill": ("os.kill(os.getpid(), signal.SIGKILL)", "child-died", "SIGKILL", "last words"),
    "garbage": ("OUT.write('\\x00{{{\\n' * 1000)\nsys.exit(1)", "child-died", "exit status 1", "last words"),
    "a hang before anything is loaded": (None, "hung", "neither reported", "most recent call first"),
    "a hang of a helper": ("helper.wait()", "hung", "neither reported", "last words"),
    "a suspended child": ("os.kill(os.getpid(), signal.SIGSTOP)", "hung", "neither reported", "last words"),
    "a busy child without a word": ("while True: pass", "hung", "has been busy for 2 s", "most recent call first"),
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    settings = load_settings({"QLORA_STATE_DIR": str(tmp_path), "QLORA_HOST": "host-a"})
    return dataclasses.replace(settings, child=ChildLimits(silence_s=1.0, busy_silence_s=2.0))


@pytest.fixture
def bench(store: Store, run_spec: RunSpec, settings: RunnerSettings, eventually: Eventually) -> Bench:
    return Bench(store, run_spec, settings, eventually)


# A suspended one takes all the time that it is given; a real worker meets it below.
@pytest.mark.parametrize("end", [end for end in ENDS if end != "a suspended child"])
def test_a_bad_end_becomes_a_code_with_the_last_lines_and_leaves_no_process(
    bench: Bench, scripted: Scripted, eventually: Eventually, end: str
) -> None:
    body, code, words, last = ENDS[end]
    attempt = bench.start(scripted("time.sleep(600)" if body is None else HELPER + body))

    assert attempt.wait() is AttemptEnd.FAILED

    job = bench.store.get(bench.job_id)
    assert job.error_code == code
    assert words in (job.error_message or "")
    assert last in (job.error_hint or "")
    assert "train.log" in (job.error_hint or "")
    eventually(lambda: members(attempt.children[0].pid) == [])


def test_a_child_that_works_without_a_word_is_left_alone(bench: Bench, scripted: Scripted) -> None:
    patient = dataclasses.replace(bench.settings, child=ChildLimits(silence_s=1.0, busy_silence_s=600.0))
    bench.settings = patient
    body = """
    for work in (lambda: sum(range(1000)), lambda: Path("/dev/zero").open("rb").read(1 << 20) and time.sleep(0.02)):
        began = time.monotonic()
        while time.monotonic() - began < 1.6:
            work()
    succeed()
    """

    assert bench.start(scripted(body)).wait() is AttemptEnd.SUCCEEDED


@pytest.mark.parametrize("sign", ["OUT.write('\\n')", "print('.')"])
def test_an_empty_line_and_a_printed_one_are_signs_of_life_and_no_events(
    bench: Bench, scripted: Scripted, sign: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = f"for _ in range(18):\n    {sign}\n    time.sleep(0.1)\nsucceed()"

    assert bench.start(scripted(body)).wait() is AttemptEnd.SUCCEEDED

    assert "no event" not in caplog.text
    assert bench.kinds == ["job_queued", "job_claimed", "run_succeeded", "job_succeeded"]


def test_a_stop_of_a_hanging_child_is_a_stop(bench: Bench, scripted: Scripted) -> None:
    bench.settings = dataclasses.replace(bench.settings, stop_grace_s=0.2, child=ChildLimits(term_grace_s=0.2))
    attempt = bench.start(scripted("metrics(1)\nos.kill(os.getpid(), signal.SIGSTOP)"))
    bench.wait_for("metrics_logged")

    bench.store.request_stop(bench.job_id, "UBOB")

    assert attempt.wait() is AttemptEnd.CANCELLED
    assert bench.state is JobState.CANCELLED


def test_a_flood_of_output_leaves_the_beginning_and_the_end_and_delays_no_event(
    child_script: Callable[[str], Path], tmp_path: Path
) -> None:
    body = """
    print("the very first line", flush=True)
    for step in range(40):
        os.write(1, (b"x" * 99 + b"\\n") * 10_000)
        metrics(step)
    print("the very last line", flush=True)
    sys.exit(5)
    """
    command = [sys.executable, str(child_script(body)), str(tmp_path), "--events-fd", str(EVENTS_FD)]
    with Child(command, tmp_path, environ=dict(os.environ), log_limit_bytes=1 << 20) as child:
        steps = [event.step for event in child.events() if event is not None and event.kind == "metrics_logged"]
        end = child.end()

    log = (tmp_path / "train.log").read_bytes()
    assert steps == list(range(40))
    assert len(log) <= 1 << 20
    assert log.startswith(b"the very first line\n")
    assert log.endswith(b"\nthe very last line\n")
    assert log.count(b" bytes left out here ...]\n") == 1
    assert isinstance(end, RunFailed)
    assert end.hint is not None
    assert end.hint.endswith("the very last line")


def test_a_flood_of_garbage_is_told_in_a_few_lines(
    scripted: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted("OUT.write('no event\\n' * 50_000)\nsucceed()")(tmp_path) as child:
        for _ in child.events():
            pass

    assert len(caplog.records) < 30
    assert "wrote 50000 lines that are no events" in caplog.text


def test_what_the_kernel_kills_for_want_of_memory_is_said_to_have_run_out_of_memory(
    child_script: Callable[[str], Path], tmp_path: Path
) -> None:
    body = "Path(sys.argv[4]).write_text(str(os.getpid()))\nprint('allocating', flush=True)\nbytearray(1 << 30)"
    with small_memory(64 << 20) as procs:
        before = kernel_kills()
        script = child_script(body)
        command = [sys.executable, str(script), str(tmp_path), "--events-fd", str(EVENTS_FD), str(procs)]
        with Child(command, tmp_path, environ=dict(os.environ)) as child:
            assert [event for event in child.events() if event is not None] == []
            end = child.end()

    assert kernel_kills() > before
    assert isinstance(end, RunFailed)
    assert end.code == "out-of-memory"
    assert "because the host ran out of memory" in end.message
    assert end.hint is not None
    assert end.hint.endswith("Its last lines:\nallocating")


def test_a_child_whose_output_fills_the_disk_is_told_so(bench: Bench, scripted: Scripted) -> None:
    with small_disk(bench.settings.output_root, 1 << 20):
        attempt = bench.start(scripted("print('first line')\nwhile True:\n    print('x' * 1000)"))

        assert attempt.wait() is AttemptEnd.FAILED

    job = bench.store.get(bench.job_id)
    assert job.error_code == "disk-full"
    assert "the disk is full" in (job.error_message or "")


def test_a_disk_that_is_full_when_the_adapter_is_to_be_published_fails_the_job_and_keeps_the_adapter(
    bench: Bench, scripted: Scripted
) -> None:
    body = """
    from contextlib import suppress
    (RUN_DIR / "adapter").mkdir()
    (RUN_DIR / "adapter" / "adapter_model.safetensors").write_text("weights")
    with suppress(OSError), (RUN_DIR / "junk").open("wb", buffering=0) as junk:
        while True:
            junk.write(bytes(4096))
    emit("run_succeeded", summary=SUMMARY, adapter_path=str(RUN_DIR / "adapter"))
    sys.exit(0)
    """
    with small_disk(bench.settings.output_root, 1 << 20):
        attempt = bench.start(scripted(body))
        assert attempt.wait() is AttemptEnd.FAILED

        (adapter,) = bench.settings.output_root.glob("demo/*/attempt-1/adapter/adapter_model.safetensors")
        assert adapter.read_text() == "weights"
        assert not list(bench.settings.output_root.glob("demo/*/adapter"))

    job = bench.store.get(bench.job_id)
    assert (job.error_code, job.error_hint) == ("disk-full", "Free space on the output root's disk.")


@pytest.fixture
def troubled_worker(
    store: Store,  # noqa: ARG001 - an empty one
    valkey_url: str,
    tmp_path: Path,
    child_script: Callable[[str], Path],
) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker whose children read from their project's name how they shall end."""
    bodies = {name.replace(" ", "-"): HELPER + body for name, (body, *_) in ENDS.items() if body is not None}
    script = child_script(
        f"ends = {bodies!r}\n"
        "exec(ends.get(json.loads((RUN_DIR / 'spec.json').read_text())['project']['name'], 'succeed()'))"
    )
    code = (
        "import sys\n"
        "from runner.child import Child, EVENTS_FD, child_environment\n"
        "from runner.settings import load_settings\n"
        "from runner.worker import run_worker\n"
        "settings = load_settings()\n"
        f"command = [sys.executable, {str(script)!r}]\n"
        "def spawn(run_dir):\n"
        "    arguments = [str(run_dir), '--events-fd', str(EVENTS_FD)]\n"
        "    return Child([*command, *arguments], run_dir, environ=child_environment(settings))\n"
        "run_worker(settings, pool='cpu', spawn=spawn)\n"
    )
    environ = {
        "PATH": os.environ["PATH"],
        "REDIS_URL": valkey_url,
        "QLORA_STATE_DIR": str(tmp_path),
        "QLORA_SILENCE_S": "1",
        "QLORA_BUSY_SILENCE_S": "2",
    }
    worker = subprocess.Popen([sys.executable, "-c", code], env=environ)
    yield worker
    worker.kill()
    worker.wait()


def test_a_worker_takes_the_next_job_after_every_bad_end(
    troubled_worker: subprocess.Popen[bytes], store: Store, run_spec: RunSpec, eventually: Eventually
) -> None:
    names = ["garbage", "a-kill", "a-suspended-child", "good"]
    projects = [run_spec.project.model_copy(update={"name": name}) for name in names]
    jobs = [
        store.submit(
            run_spec.model_copy(update={"project": project}), submitted_by="U", origin={}, request_id=project.name
        ).id
        for project in projects
    ]

    eventually(lambda: store.get(jobs[-1]).state is JobState.SUCCEEDED, within_s=50)

    assert [store.get(job).error_code for job in jobs] == ["child-died", "child-died", "hung", None]
    assert troubled_worker.poll() is None
    eventually(lambda: psutil.Process(troubled_worker.pid).children(recursive=True) == [])
