from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.child import Child, RunEnd, Spawn, child_environment
from runner.events import ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.settings import load_settings

Scripted = Callable[[str], Spawn]
Eventually = Callable[..., None]
IsGone = Callable[[int], bool]


def run_to_the_end(child: Child) -> tuple[list[ChildEvent], RunEnd]:
    with child:
        events = [event for event in child.events() if event is not None]
        return events, child.end()


def test_a_child_that_succeeds_delivers_its_events_in_order(scripted: Scripted, tmp_path: Path) -> None:
    events, end = run_to_the_end(scripted("metrics(1)\nmetrics(2)\nsucceed()")(tmp_path))

    assert [event.kind for event in events] == ["metrics_logged", "metrics_logged", "run_succeeded"]
    assert isinstance(end, RunSucceeded)
    assert end.summary.loss_last == 0.5


def test_what_a_child_prints_goes_to_its_log_and_not_among_its_events(scripted: Scripted, tmp_path: Path) -> None:
    body = "print('to stdout')\nprint('to stderr', file=sys.stderr)\nsucceed()"

    events, _ = run_to_the_end(scripted(body)(tmp_path))

    assert len(events) == 1
    assert (tmp_path / "train.log").read_text() == "to stdout\nto stderr\n"


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says about lines that were no events."""
    heads = [record.getMessage().partition(" wrote something that is no event: ") for record in caplog.records]
    return [line for _, separator, line in heads if separator]


def test_lines_that_are_no_events_are_logged_and_passed_over(
    scripted: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = """
    OUT.write("not json\\n")
    OUT.write('{"kind": "nothing_we_know"}\\n')
    emit("job_failed", code="x", message="only the store may write this")
    OUT.write("\\xff" * 3 + "\\n")
    succeed()
    """
    child = scripted(body)(tmp_path)

    events, end = run_to_the_end(child)

    assert [event.kind for event in events] == ["run_succeeded"]
    assert isinstance(end, RunSucceeded)
    assert refused(caplog)[:2] == ["not json", '{"kind": "nothing_we_know"}']
    assert len(refused(caplog)) == 4


def test_a_line_without_an_end_does_not_fill_the_memory(
    scripted: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = scripted("OUT.write('x' * 3_000_000 + '\\n')\nsucceed()")(tmp_path)

    _, end = run_to_the_end(child)

    assert isinstance(end, RunSucceeded)
    # In pieces, as soon as each is too long, and not as a whole.
    assert len(refused(caplog)) >= 2
    assert all(line == "x" * 200 for line in refused(caplog)[:2])


def test_a_line_cut_off_by_a_crash_is_no_event(
    scripted: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = scripted('OUT.write(\'{"kind": "phase_\')\nOUT.flush()\nos._exit(9)')(tmp_path)

    events, end = run_to_the_end(child)

    assert events == []
    assert refused(caplog) == ['{"kind": "phase_']
    assert isinstance(end, RunFailed)
    assert "exit status 9" in end.message


def test_a_segfault_becomes_an_error_that_names_the_signal_and_shows_the_log(
    scripted: Scripted, tmp_path: Path
) -> None:
    body = "print('token hf_abcdefghijklmnop in use')\nmetrics(1)\nos.kill(os.getpid(), signal.SIGSEGV)"

    events, end = run_to_the_end(scripted(body)(tmp_path))

    assert len(events) == 1
    assert isinstance(end, RunFailed)
    assert end.code == "child-died"
    assert "SIGSEGV" in end.message
    assert end.hint is not None
    assert "token [redacted] in use" in end.hint
    assert "Segmentation fault" in end.hint
    assert str(tmp_path / "train.log") in end.hint


def test_a_child_killed_from_outside_points_at_the_memory(scripted: Scripted, tmp_path: Path) -> None:
    _, end = run_to_the_end(scripted("os.kill(os.getpid(), signal.SIGKILL)")(tmp_path))

    assert isinstance(end, RunFailed)
    assert "SIGKILL" in end.message
    assert "out-of-memory" in (end.hint or "")


def test_a_child_asked_to_stop_ends_with_its_checkpoint(scripted: Scripted, tmp_path: Path) -> None:
    with scripted("train()")(tmp_path) as child:
        kinds = []
        for event in child.events():
            if event is not None:
                kinds.append(event.kind)
                child.ask_to_stop()
        end = child.end()

    assert kinds[-2:] == ["checkpoint_saved", "run_interrupted"]
    assert isinstance(end, RunInterrupted)
    assert (tmp_path / "checkpoints" / f"checkpoint-{end.step}" / "complete").exists()


def test_asking_twice_is_asking_once(scripted: Scripted, tmp_path: Path) -> None:
    body = """
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    emit("phase_started", phase="training")
    while not asked:
        time.sleep(0.01)
    time.sleep(0.3)
    emit("run_interrupted", step=len(asked), checkpoint=None)
    sys.exit(3)
    """
    with scripted(body)(tmp_path) as child:
        for event in child.events(0.01):
            if event is not None or child._asked_to_stop:
                child.ask_to_stop()
        end = child.end()

    assert isinstance(end, RunInterrupted)
    assert end.step == 1


def test_a_stop_before_the_child_can_listen_counts_as_a_stop(scripted: Scripted, tmp_path: Path) -> None:
    with scripted("signal.signal(signal.SIGTERM, signal.SIG_DFL)\nmetrics(1)\ntime.sleep(60)")(tmp_path) as child:
        for event in child.events():
            if event is not None:
                child.ask_to_stop()
        end = child.end()

    assert end.kind == "run_interrupted"


def test_a_child_that_ignores_every_request_can_be_killed(scripted: Scripted, tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmetrics(1)\ntime.sleep(60)"
    with scripted(body)(tmp_path) as child:
        for event in child.events():
            if event is not None:
                child.ask_to_stop()
                child.kill()
        end = child.end()

    assert isinstance(end, RunInterrupted)


def test_a_child_that_does_not_exit_after_its_last_event_is_killed(scripted: Scripted, tmp_path: Path) -> None:
    body = "(RUN_DIR / 'adapter').mkdir()\nemit('run_succeeded', summary=SUMMARY, adapter_path='x')\ntime.sleep(60)"
    child = scripted(body)(tmp_path)
    child._exit_grace_s = 0.3

    _, end = run_to_the_end(child)

    assert isinstance(end, RunSucceeded)


def test_closing_ends_the_whole_group(
    scripted: Scripted, tmp_path: Path, eventually: Eventually, is_gone: IsGone
) -> None:
    body = """
    loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    emit("run_interrupted", step=loader.pid, checkpoint=None)
    time.sleep(60)
    """
    with scripted(body)(tmp_path) as child:
        event = next(event for event in child.events() if event is not None)

    assert isinstance(event, RunInterrupted)
    assert not child.running
    loader = event.step
    eventually(lambda: is_gone(loader))


def test_a_loader_that_outlives_the_child_does_not_keep_us_waiting(
    scripted: Scripted, tmp_path: Path, eventually: Eventually, is_gone: IsGone
) -> None:
    body = """
    OUT.flush()
    loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[OUT.fileno()])
    metrics(loader.pid)
    os._exit(7)
    """
    events, end = run_to_the_end(scripted(body)(tmp_path))

    assert "exit status 7" in end.message if isinstance(end, RunFailed) else False
    loader = events[0].step if events[0].kind == "metrics_logged" else 0
    eventually(lambda: is_gone(loader))


def test_killing_the_parent_leaves_no_process_of_the_group(
    child_script: Callable[[str], Path], tmp_path: Path, eventually: Eventually, is_gone: IsGone
) -> None:
    script = child_script(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (RUN_DIR / "pids.tmp").write_text(f"{os.getpid()} {loader.pid}")
        (RUN_DIR / "pids.tmp").rename(RUN_DIR / "pids")
        time.sleep(60)
        """
    )
    parent_code = (
        "import os, sys; from pathlib import Path; from runner.child import Child\n"
        f"child = Child([sys.executable, {str(script)!r}, {str(tmp_path)!r}, '--events-fd', '4'],"
        f" Path({str(tmp_path)!r}), environ=dict(os.environ))\n"
        "list(child.events())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    try:
        eventually((tmp_path / "pids").exists)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert not any(is_gone(pid) for pid in pids)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    eventually(lambda: all(is_gone(pid) for pid in pids))


def test_a_child_knows_neither_redis_nor_slack_but_its_folders(tmp_path: Path) -> None:
    settings = load_settings({"QLORA_STATE_DIR": str(tmp_path), "REDIS_URL": "redis://localhost"})
    environ = {"REDIS_URL": "redis://localhost", "SLACK_BOT_TOKEN": "xoxb-local", "SLACK_ANYTHING": "1", "HOME": "/h"}

    scrubbed = child_environment(settings, environ)

    assert "REDIS_URL" not in scrubbed
    assert not [name for name in scrubbed if name.startswith("SLACK_")]
    assert scrubbed["HOME"] == "/h"
    assert scrubbed["QLORA_MODELS_ROOT"] == str(tmp_path / "models")


def test_descriptors_are_given_back(scripted: Scripted, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    run_to_the_end(scripted("succeed()")(tmp_path))

    assert len(list(Path("/proc/self/fd").iterdir())) == before
