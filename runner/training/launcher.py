"""Runs an attempt as several processes, one a device, and makes one story of theirs; loads no torch.

Rank 0 writes the events and the files; the others compute beside it and are heard only when they fail. The launcher
passes rank 0's events on, marks what each rank prints, and ends all of them with whichever ends the attempt:

- rank 0's success or interruption, which the others may not outlive;
- the failure that came first. A rank that loses its peers fails as well, in words that explain nothing, so what it
  says waits a moment for a better explanation. Where training has stalled, all write their stacks before they end.

A rank that runs out of memory in training ends as well, with the batch that shall be tried instead. Then all are
started anew with that.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from runner.child import STALLED, RunEnd
from runner.deaths import describe_silent_death, kernel_kills
from runner.event_lines import parse_event
from runner.events import BatchHalved, ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.redaction import redact
from runner.run_directory import RunDirectory, checkpoint_step
from runner.training.signs_of_life import size_bytes
from runner.training.stopping import StopSwitch

RANK_LOST = "rank-lost"
"""Code of a failure that another rank explains."""
_PR_SET_PDEATHSIG = 1
_TICK_S = 0.1
_EXPLANATION_S = 2.0
"""How long a failure that explains nothing waits for another rank's: theirs lose a connection at once, at the latest
when the failed process is gone."""
_STACKS_S = 10.0
"""How long ranks have for writing their stacks, which takes the kernel and no lock."""
_WRITE_STACKS_AND_END = signal.SIGUSR1
_TAIL_LINES = 20
_TAIL_CHARACTERS = 1000
_RANK_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RankStart:
    """What a rank is started with."""

    rank: int
    events_fd: int
    """Where its events go."""
    rendezvous_fd: int
    """The socket where all meet."""
    signs_fd: int
    """The file of everybody's signs of life."""
    rows_at_once: int | None = None
    """What is left to try when memory has run out."""


RankCommand = Callable[[RankStart], Sequence[str]]
"""The command line of a rank."""


class BatchTooLargeError(Exception):
    """A rank has run out of memory in training; the event says what all shall try instead."""

    def __init__(self, halved: BatchHalved) -> None:
        super().__init__(halved.announcement)
        self.halved = halved


def rank_command(run_dir: Path) -> RankCommand:
    """The way that real attempts start their ranks."""

    def command(start: RankStart) -> Sequence[str]:
        return [
            sys.executable, "-m", "runner.training", str(run_dir), "--rank", str(start.rank),
            "--events-fd", str(start.events_fd), "--rendezvous-fd", str(start.rendezvous_fd),
            "--signs-fd", str(start.signs_fd),
            *(["--rows-at-once", str(start.rows_at_once)] if start.rows_at_once is not None else []),
        ]  # fmt: skip

    return command


def rank_environment(rank: int, count: int, port: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What torch.distributed and accelerate read, in torchrun's names, and this rank's share of the threads."""
    values = (rank, count, rank, count, "127.0.0.1", port, max(1, len(os.sched_getaffinity(0)) // count))
    # An operator's own number of threads stands; ranks that each took all cores would wait for each other.
    threads = {"OMP_NUM_THREADS": environ["OMP_NUM_THREADS"]} if "OMP_NUM_THREADS" in environ else {}
    # All ranks are on this host, whatever its name resolves to.
    network = {"GLOO_SOCKET_IFNAME": "lo"}
    return {**network, **environ, **dict(zip(_RANK_VARIABLES, map(str, values), strict=True)), **threads}


def environment_of_one(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a process that a rank starts and that is no rank itself."""
    if "RANK" not in environ:
        return dict(environ)
    return {name: value for name, value in environ.items() if name not in _RANK_VARIABLES}


def obey_launcher(rank: int) -> None:
    """Die with the launcher, and leave it to rank 0 to hear of a stop. Called by a rank's main thread, first of all."""
    # Written by the signal's handler itself, whatever the interpreter is doing; then the signal ends the process.
    faulthandler.register(_WRITE_STACKS_AND_END, all_threads=True, chain=True)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if rank > 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_ranks(
    command: RankCommand,
    count: int,
    *,
    emit: Callable[[ChildEvent], None],
    stop: StopSwitch,
    run_dir: Path,
    beat: Callable[[], None] = lambda: None,
) -> RunEnd:
    """Start the ranks and see them to their end, anew whenever memory runs out; none lives when this returns.

    Args:
        command: Starts one rank.
        count: How many.
        emit: Gets every event of rank 0 but the last, which is returned; and `batch_halved` of whichever rank.
        stop: Passed on to rank 0 alone, which stops the others at the same step.
        run_dir: The attempt's folder, whose train.log this process's standard error goes to.
        beat: Called whenever rank 0 says that it lives.
    """
    rows_at_once = None
    while True:
        end = _run_once(command, count, rows_at_once, emit=emit, beat=beat, stop=stop, log_path=run_dir / "train.log")
        if not isinstance(end, BatchHalved):
            return end
        # Looked for now that nobody writes any more: the rank itself may not have seen the last one completed.
        checkpoint = RunDirectory(run_dir).newest_checkpoint()
        step = checkpoint_step(checkpoint) if checkpoint is not None else 0
        emit(end.model_copy(update={"processes": count, "resumed_from_step": step}))
        if stop.is_set:
            return RunInterrupted(step=step, checkpoint=str(checkpoint) if checkpoint is not None else None)
        rows_at_once = end.per_device_train_batch_size


def _run_once(
    command: RankCommand,
    count: int,
    rows_at_once: int | None,
    *,
    emit: Callable[[ChildEvent], None],
    beat: Callable[[], None],
    stop: StopSwitch,
    log_path: Path,
) -> RunEnd | BatchHalved:
    with ExitStack() as stack:
        # Bound here and inherited by rank 0: a port that is only looked for may be somebody else's by then.
        rendezvous = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        signs = stack.enter_context(tempfile.TemporaryFile())
        signs.truncate(size_bytes(count))
        launch = _Launch(command, count, rendezvous, signs.fileno(), rows_at_once, emit, beat)
        ranks = [stack.enter_context(_Rank(number, launch)) for number in range(count)]
        rendezvous.close()
        selector = stack.enter_context(selectors.DefaultSelector())
        for rank in ranks:
            selector.register(rank.events, selectors.EVENT_READ, rank.read_events)
            selector.register(rank.output, selectors.EVENT_READ, rank.read_output)
        asked = False
        patience = float("inf")
        while True:
            for key, _ in selector.select(_TICK_S):
                if not key.data():
                    selector.unregister(key.fileobj)
            if stop.is_set and not asked:
                asked = True
                ranks[0].ask_to_stop()
            if isinstance(ranks[0].end, RunSucceeded | RunInterrupted):
                return ranks[0].end
            too_large = next((rank.too_large for rank in ranks if rank.too_large is not None), None)
            if too_large is not None:
                return too_large
            failures = [failure for rank in ranks if (failure := rank.failure(log_path)) is not None]
            if not failures:
                continue
            if any(failure.is_stop(asked=asked) for failure in failures):
                return RunInterrupted(step=0, checkpoint=None)
            patience = min(patience, time.monotonic() + _EXPLANATION_S)
            first = min(failures, key=_Failure.order)
            if first.explains or time.monotonic() > patience or len(failures) == count:
                if first.event.code == STALLED:
                    _collect_stacks(ranks)
                return first.event


def _collect_stacks(ranks: Sequence[_Rank]) -> None:
    """Let every rank write its stacks into the log and end: the one that hangs need not be the one that noticed."""
    for rank in ranks:
        rank.write_stacks_and_end()
    deadline = time.monotonic() + _STACKS_S
    writing = list(ranks)
    while writing and time.monotonic() < deadline:
        time.sleep(_TICK_S)
        for rank in writing:
            rank.read_output()
        writing = [rank for rank in writing if rank.runs()]


@dataclass(frozen=True, slots=True)
class _Failure:
    """How a rank failed."""

    event: RunFailed
    status: int | None
    """Its exit status where it died without a word, None where it told the event itself."""

    @property
    def explains(self) -> bool:
        """Whether it says what is wrong; an unexpected error may be that of a rank that has lost another one."""
        return self.status is None and self.event.code not in {"internal", RANK_LOST}

    def is_stop(self, *, asked: bool) -> bool:
        """Whether it ended because somebody wanted so before it had installed its handler."""
        return self.status == -signal.SIGTERM or (asked and self.status is not None)

    def order(self) -> tuple[bool, bool, datetime]:
        """Sort first what explains, then who was killed, then by the clock.

        SIGABRT counts as little as an unexpected error: NCCL's watchdog ends so whoever has lost a peer.
        """
        killed = self.status is not None and self.status != -signal.SIGABRT
        return not self.explains, not killed, self.event.at


@dataclass(frozen=True, slots=True)
class _Launch:
    """What all ranks that are started together share."""

    command: RankCommand
    count: int
    rendezvous: socket.socket
    signs_fd: int
    rows_at_once: int | None
    emit: Callable[[ChildEvent], None]
    """Gets all of rank 0's events but the last."""
    beat: Callable[[], None]
    """Called for every empty line among them."""


class _Rank:
    """One process and its two pipes; a context manager that leaves neither behind."""

    def __init__(self, number: int, launch: _Launch) -> None:
        rendezvous_fd = launch.rendezvous.fileno()
        self.end: RunEnd | None = None
        self.too_large: BatchHalved | None = None
        """What shall be tried instead, where it has run out of memory."""
        self._number = number
        self._emit = launch.emit
        self._beat = launch.beat
        self._unread_events = b""
        self._unread_output = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._failure: _Failure | None = None
        self._events_over = False
        self._kills_before = kernel_kills()
        self.events, events_write = os.pipe()
        self.output, output_write = os.pipe()
        os.set_blocking(self.events, False)
        os.set_blocking(self.output, False)
        try:
            self._process = subprocess.Popen(
                launch.command(RankStart(number, events_write, rendezvous_fd, launch.signs_fd, launch.rows_at_once)),
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                env=rank_environment(number, launch.count, launch.rendezvous.getsockname()[1]),
                pass_fds=(events_write, launch.signs_fd, *((rendezvous_fd,) if number == 0 else ())),
            )
        except BaseException:
            os.close(self.events)
            os.close(self.output)
            raise
        finally:
            os.close(events_write)
            os.close(output_write)

    def read_events(self) -> bool:
        """Take in what lies in the pipe; pass on all of rank 0's events but the last. Tells whether more may come."""
        try:
            data = os.read(self.events, 1 << 16)
        except BlockingIOError:
            return False
        *lines, self._unread_events = (self._unread_events + data).split(b"\n")
        for line in lines:
            if not line:
                self._beat()
                continue
            try:
                event = parse_event(line)
            except ValidationError:
                self._say(f"wrote something that is no event: {redact(line[:200].decode('utf-8', 'replace'))}")
                continue
            if isinstance(event, RunEnd):
                self.end = event
            elif isinstance(event, BatchHalved):
                self.too_large = event
            elif self._number == 0 and isinstance(event, ChildEvent):
                self._emit(event)
        self._events_over = not data
        return bool(data)

    def read_output(self) -> bool:
        """Write what it printed to our standard error, every line marked. Tells whether more may come."""
        try:
            data = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return False
        *lines, self._unread_output = (self._unread_output + data).split(b"\n")
        if not data and self._unread_output:
            lines.append(self._unread_output)
        for line in lines:
            self._say(line.decode("utf-8", "replace"))
        return bool(data)

    def failure(self, log_path: Path) -> _Failure | None:
        """How it failed, None while it has not."""
        if self._failure is None and isinstance(self.end, RunFailed):
            self._failure = _Failure(self.end, None)
        # Its events are read to their end, so that it was silent; its output may be held by a process of its own.
        status = self._process.poll() if self._events_over else None
        # Another rank than the first ends without a word when its part is done.
        if self.end is None and status is not None and (status != 0 or self._number == 0) and self._failure is None:
            self._drain(self.read_output)
            name = f"training process of rank {self._number}"
            tail = redact("\n".join(self._tail))[-_TAIL_CHARACTERS:]
            killed = kernel_kills() - self._kills_before
            told = describe_silent_death(name, status, log_path, tail, kernel_killed=killed)
            self._failure = _Failure(told, status)
        return self._failure

    def runs(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def write_stacks_and_end(self) -> None:
        """Have it write the stacks of all its threads and end, even where native code hangs with Python's lock."""
        self._process.send_signal(_WRITE_STACKS_AND_END)

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint and the end."""
        self._process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whatever it would still do, its last event is out or another rank's failure has ended the attempt. What it
        # has told until here has happened.
        self._process.kill()
        self._process.wait()
        self._drain(self.read_events)
        self._drain(self.read_output)
        os.close(self.events)
        os.close(self.output)

    @staticmethod
    def _drain(read: Callable[[], bool]) -> None:
        while read():
            pass

    def _say(self, text: str) -> None:
        if text.strip():
            self._tail.append(text)
        sys.stderr.write(f"[rank {self._number}] {text}\n")
