"""Ranks that do not come to where rank 0 waits for them, outside of the training: real processes, a real gloo group."""

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from runner.events import RunFailed
from runner.training.launcher import RankStart, run_ranks
from runner.training.ranks import gradient_timeout
from runner.training.stopping import StopSwitch

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]

RANK = """
import ctypes, os, sys, time
from runner.training import ranks
from runner.training.launcher import obey_launcher

rank, events, rendezvous = map(int, sys.argv[1:])
def tell(event):
    os.write(events, event.model_dump_json().encode() + b"\\n")
def end_stalled(event):
    tell(event)
    os._exit(1)
def hangs_while_loading():
    ctypes.PyDLL(None).pause()  # keeps the interpreter's lock

obey_launcher(rank)
ranks.join(rendezvous, patience_s=2.0, on_stall=end_stalled)
if rank == 0:
    time.sleep(2.5)  # the others may wait for rank 0 as long as it takes
ranks.gather("prepared")
if rank == 1:
    hangs_while_loading()
ranks.gather("loaded")
"""


def test_a_rank_that_hangs_while_it_loads_ends_the_attempt_with_its_stacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(start: RankStart) -> Sequence[str]:
        return [sys.executable, "-c", RANK, *map(str, (start.rank, start.events_fd, start.rendezvous_fd))]

    end = run_ranks(command, 2, emit=lambda _: None, stop=StopSwitch(), run_dir=tmp_path / "attempt-1")

    assert isinstance(end, RunFailed)
    assert end.code == "stalled"
    assert end.message.startswith("For 2 s the other processes have not come to where rank 0 waits for them")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("[rank 1]") and line.endswith("in hangs_while_loading")]


@pytest.mark.parametrize(
    ("patience_s", "timeout"),
    [(60.0, timedelta(minutes=30)), (3600.0, timedelta(hours=2)), (0.0, timedelta(days=30))],
)
def test_a_lost_gradient_is_waited_for_until_the_stall_watch_has_spoken(patience_s: float, timeout: timedelta) -> None:
    assert gradient_timeout(patience_s) == timeout
