"""What the launcher makes of its ranks' ends, with small scripts in the place of the ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from runner.child import RunEnd
from runner.events import BatchHalved, ChildEvent, RunFailed, RunInterrupted
from runner.training.launcher import RankStart, _Failure, environment_of_one, rank_environment, run_ranks
from runner.training.stopping import StopSwitch
from tests.runner.small_memory import small_memory

PRELUDE = """
import json, os, signal, sys, time
rank, events, rows_at_once = map(int, sys.argv[1:])
os.set_inheritable(events, False)
def tell(kind, **fields):
    os.write(events, json.dumps({"kind": kind, **fields}).encode() + b"\\n")
def hang():
    while True:
        time.sleep(60)
"""
DATA = 'tell("phase_started", phase="data")\n'
INTERRUPTED = 'tell("run_interrupted", step=4, checkpoint=None)\n'
HALVED = (
    'tell("batch_halved", step=3, reason="out of memory", former_batch_size=4, per_device_train_batch_size=2, '
    "gradient_accumulation_steps=2)\n"
)

Launch = Callable[..., RunEnd]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Run a script as each of two ranks; events of rank 0 go to `emit`."""

    def run(script: str, emit: Callable[[ChildEvent], None] = lambda _: None, stop: StopSwitch | None = None) -> RunEnd:
        def command(start: RankStart) -> Sequence[str]:
            told = map(str, (start.rank, start.events_fd, start.rows_at_once or 0))
            return [sys.executable, "-c", PRELUDE + script, *told]

        return run_ranks(command, 2, emit=emit, stop=stop or StopSwitch(), run_dir=tmp_path / "attempt-1")

    return run


def test_rank_0_tells_the_story_and_its_end(launch: Launch) -> None:
    events: list[ChildEvent] = []

    end = launch(f"if rank == 0:\n    {DATA}    {INTERRUPTED}", events.append)

    assert [(event.kind, getattr(event, "phase", None)) for event in events] == [("phase_started", "data")]
    assert isinstance(end, RunInterrupted)
    assert end.step == 4


def test_another_rank_is_not_heard(launch: Launch) -> None:
    events: list[ChildEvent] = []

    end = launch(
        f"if rank == 1:\n    {DATA}    {INTERRUPTED}else:\n    time.sleep(0.3)\n    {INTERRUPTED}", events.append
    )

    assert events == []
    assert isinstance(end, RunInterrupted)


def test_another_rank_may_end_without_a_word_when_its_part_is_done(launch: Launch) -> None:
    end = launch(f"if rank == 0:\n    time.sleep(0.5)\n    {INTERRUPTED}")

    assert isinstance(end, RunInterrupted)


def test_what_ranks_print_is_marked_with_their_numbers(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(
        f"""
print("to standard output")
print("to standard error", file=sys.stderr, end="")
if rank == 0:
    time.sleep(0.3)
    {INTERRUPTED}"""
    )

    lines = set(capsys.readouterr().err.splitlines())
    assert lines == {f"[rank {n}] to standard {where}" for n in (0, 1) for where in ("output", "error")}


def test_the_rank_that_failed_first_is_heard_and_not_those_that_it_left_behind(launch: Launch) -> None:
    end = launch(
        """
if rank == 1:
    tell("run_failed", code="dataset", message="row 3 is broken")
    sys.exit(1)
tell("run_failed", code="internal", message="Connection closed by peer")
hang()"""
    )

    assert isinstance(end, RunFailed)
    assert (end.code, end.message) == ("dataset", "row 3 is broken")


def test_a_killed_rank_ends_the_attempt_in_the_words_of_its_death(launch: Launch) -> None:
    end = launch(
        """
if rank == 1:
    print("allocating", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.1)
tell("run_failed", code="internal", message="Connection closed by peer")
hang()"""
    )

    assert isinstance(end, RunFailed)
    assert end.code == "child-died"
    assert "rank 1 ended with SIGKILL" in end.message
    assert end.hint is not None
    assert "out-of-memory killer" in end.hint
    assert end.hint.endswith("Its last lines:\nallocating")


def test_a_rank_that_the_kernel_kills_for_want_of_memory_is_told_as_that(launch: Launch) -> None:
    with small_memory(64 << 20) as procs:
        end = launch(
            f"""
if rank == 1:
    open({str(procs)!r}, "w").write(str(os.getpid()))
    bytearray(1 << 30)
time.sleep(0.1)
tell("run_failed", code="internal", message="Connection closed by peer")
hang()"""
        )

    assert isinstance(end, RunFailed)
    assert end.code == "out-of-memory"
    assert "training process of rank 1" in end.message
    assert "because the host ran out of memory" in end.message


def test_nothing_that_rank_0_has_told_is_lost_when_another_ends_the_attempt(launch: Launch, tmp_path: Path) -> None:
    told = tmp_path / "told"
    events: list[ChildEvent] = []

    end = launch(
        f"""
from pathlib import Path
told = Path({str(told)!r})
if rank == 1:
    while not told.exists():
        time.sleep(0.01)
    tell("run_failed", code="dataset", message="broken")
    hang()
step = 0
with told.open("wb", buffering=0) as written:
    while True:
        step += 1
        tell("checkpoint_saved", step=step, path=f"checkpoint-{{step}}")
        written.write(b".")
""",
        events.append,
    )

    assert isinstance(end, RunFailed)
    assert [getattr(event, "step", None) for event in events] == list(range(1, len(events) + 1))
    assert len(events) >= told.stat().st_size > 0


def test_no_rank_outlives_the_attempt(launch: Launch) -> None:
    # Other tests of this session may keep a server running.
    before = psutil.Process().children()
    launch('if rank == 0:\n    tell("run_failed", code="dataset", message="broken")\nhang()')

    assert [child for child in psutil.Process().children() if child not in before] == []


def test_a_rank_out_of_memory_has_all_started_anew_with_the_smaller_batch(
    launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "attempt-1" / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete").touch()
    events: list[ChildEvent] = []

    end = launch(
        f"""
print("with", rows_at_once, flush=True)
if not rows_at_once and rank == 1:
    {HALVED}
elif not rows_at_once:
    tell("run_failed", code="internal", message="Connection closed by peer")
elif rank == 0:
    time.sleep(0.5)
    {INTERRUPTED}
hang()""",
        events.append,
    )

    assert isinstance(end, RunInterrupted)
    [halved] = events
    assert isinstance(halved, BatchHalved)
    assert halved.announcement == (
        "⚠️ per_device_train_batch_size 4 ran out of memory at step 3, trying 2 with gradient_accumulation_steps 2, "
        "from the checkpoint of step 2, loading again in 2 processes... (still 8 rows a step)"
    )
    assert {f"[rank {rank}] with 2" for rank in (0, 1)} <= set(capsys.readouterr().err.splitlines())


def test_a_stop_while_memory_runs_out_starts_nobody_anew(launch: Launch) -> None:
    stop = StopSwitch()

    end = launch(
        f"if rank == 1:\n    {HALVED}assert not rows_at_once\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nhang()",
        lambda _: stop.set(),
        stop,
    )

    assert isinstance(end, RunInterrupted)
    assert (end.step, end.checkpoint) == (0, None)


def test_where_one_rank_has_noticed_a_stall_all_write_their_stacks(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "hanging"))

    end = launch(
        """
import ctypes
from pathlib import Path
from runner.training.launcher import obey_launcher
obey_launcher(rank)
def hangs_in_native_code():
    Path(os.environ["MARK"]).mkdir()
    ctypes.PyDLL(None).pause()  # keeps the interpreter's lock
if rank == 1:
    hangs_in_native_code()
while not Path(os.environ["MARK"]).exists():
    time.sleep(0.01)
tell("run_failed", code="stalled", message="Training has not moved")
hang()"""
    )

    assert isinstance(end, RunFailed)
    assert end.code == "stalled"
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("[rank 1]") and line.endswith("in hangs_in_native_code") for line in lines)
    # It may not have come to its hanging yet.
    assert any(line.startswith("[rank 0]") and 'File "<string>", line' in line for line in lines)


def test_a_stop_reaches_rank_0_alone(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopSwitch()

    end = launch(
        f"""
def stopped(*_):
    print("heard of the stop", flush=True)
    if rank == 0:
        {INTERRUPTED}
signal.signal(signal.SIGTERM, stopped)
{DATA}hang()""",
        lambda _: stop.set(),
        stop,
    )

    assert isinstance(end, RunInterrupted)
    assert capsys.readouterr().err == "[rank 0] heard of the stop\n"


def test_a_stop_before_rank_0_can_hear_it_is_a_stop_all_the_same(launch: Launch) -> None:
    stop = StopSwitch()
    stop.set()

    end = launch("hang()", stop=stop)

    assert isinstance(end, RunInterrupted)
    assert (end.step, end.checkpoint) == (0, None)


def test_ranks_die_with_their_launcher(tmp_path: Path) -> None:
    script = tmp_path / "launcher.py"
    script.write_text(
        f"""
import sys
from pathlib import Path
from runner.training.launcher import run_ranks
from runner.training.stopping import StopSwitch

RANK = r'''{PRELUDE}
from runner.training.launcher import obey_launcher
obey_launcher(rank)
if rank == 0:
    time.sleep(0.5)
{DATA}
hang()
'''
def command(start):
    return [sys.executable, "-c", RANK, str(start.rank), str(start.events_fd), "0"]

def emit(event):
    print("running", flush=True)

run_ranks(command, 2, emit=emit, stop=StopSwitch(), run_dir=Path("attempt-1"))
""",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, cwd=Path.cwd()) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"running\n"
        ranks = psutil.Process(launcher.pid).children()
        # Rank 1 has had as long as rank 0 to come to its end of the script, and half a second more.
        assert len(ranks) == 2

        launcher.kill()

    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert alive == []


NOW = datetime.now(UTC)


def _failure(code: str, status: int | None = None, after_s: float = 0.0) -> _Failure:
    return _Failure(RunFailed(code=code, message="", at=NOW + timedelta(seconds=after_s)), status)


@pytest.mark.parametrize(
    ("cause", "consequence"),
    [
        (_failure("dataset", after_s=1), _failure("internal")),
        (_failure("dataset", after_s=1), _failure("rank-lost")),
        (_failure("out-of-memory", after_s=1), _failure("child-died", -signal.SIGABRT)),
        (_failure("child-died", -signal.SIGKILL, after_s=1), _failure("internal")),
        (_failure("child-died", -signal.SIGKILL, after_s=1), _failure("child-died", -signal.SIGABRT)),
        (_failure("internal"), _failure("internal", after_s=1)),
        (_failure("internal"), _failure("child-died", -signal.SIGABRT, after_s=1)),
    ],
)
def test_a_cause_is_told_from_its_consequences(cause: _Failure, consequence: _Failure) -> None:
    assert min([consequence, cause], key=_Failure.order) is cause


def test_ranks_share_the_cores_and_find_each_other() -> None:
    environ = rank_environment(1, 2, 4711, {"PATH": "/bin"})

    assert environ == {
        "PATH": "/bin",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4711",
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def test_an_operators_number_of_threads_stands() -> None:
    assert rank_environment(0, 8, 4711, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


def test_a_process_that_a_rank_starts_is_no_rank() -> None:
    assert environment_of_one(rank_environment(0, 2, 4711, {"PATH": "/bin"})) == {
        "PATH": "/bin",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    assert environment_of_one({"OMP_NUM_THREADS": "3"}) == {"OMP_NUM_THREADS": "3"}
