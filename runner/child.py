"""One training child: its events, its log, and how it ends. Its processes are `runner.process_group`'s."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from runner import process_group
from runner.deaths import describe_silent_death, is_full, kernel_kills, name_of_death
from runner.event_lines import parse_event
from runner.events import ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.group_work import members
from runner.process_group import ProcessGroup
from runner.redaction import redact
from runner.settings import RunnerSettings
from runner.train_log import LIMIT_BYTES, TrainLog

logger = logging.getLogger(__name__)

EVENTS_FD = process_group.EVENTS_FD
"""The descriptor on which a child finds its event pipe."""
STALLED = "stalled"
"""Code of a training that does not move."""
_TOO_LATE = b"Timeout ("
"""faulthandler's heading where the child's stall watch could not speak (`runner.training.loop.stall_watch`)."""
LOG_LOOK_S = 0.2
"""Seconds between two looks at how large the log is."""
_LINE_LIMIT_BYTES = 1 << 20
_REFUSED_BYTES = 200
_REFUSED_TOLD = 20
"""Lines that were no events, of which the log tells each; the rest is only counted."""

RunEnd = RunSucceeded | RunFailed | RunInterrupted
"""How a child ended: its own last event, or a `RunFailed` that we had to write for it."""
_EXIT_STATUS_OF: dict[type[RunEnd], int] = {RunSucceeded: 0, RunFailed: 1, RunInterrupted: 3}
Spawn = Callable[[Path], "Child"]
"""Starts the child of a run directory; tests put a small script in the training's place."""


TRAINING_PROGRAM = (sys.executable, "-m", "runner.training")
"""What a training child runs."""


def training_arguments(run_dir: Path) -> list[str]:
    """The arguments of a training child."""
    return [str(run_dir), "--events-fd", str(EVENTS_FD)]


def child_environment(settings: RunnerSettings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """This process's environment without what a child must not know, with the folders of this host."""
    kept = {name: value for name, value in environ.items() if name != "REDIS_URL" and not name.startswith("SLACK_")}
    return kept | {
        "QLORA_STATE_DIR": str(settings.state_dir),
        "QLORA_PROJECTS_DIR": str(settings.projects_dir),
        "QLORA_MODELS_ROOT": str(settings.models_root),
        "QLORA_OUTPUT_ROOT": str(settings.output_root),
        # What a crashing child printed last must be in its log, native stack included.
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def spawn_training(settings: RunnerSettings) -> Spawn:
    """The way that real jobs start their child."""

    def spawn(run_dir: Path) -> Child:
        return Child(
            [*TRAINING_PROGRAM, *training_arguments(run_dir)],
            run_dir,
            environ=child_environment(settings),
            log_limit_bytes=settings.child.log_bytes,
        )

    return spawn


class Child:
    """A running child; use it as a context manager so that its group is gone afterwards.

    Args:
        command: What to run; finds its event pipe on descriptor `EVENTS_FD`.
        run_dir: Standard output and error go to `train.log` in it.
        environ: The child's whole environment.
        exit_grace_s: Seconds between its last event and its exit, after which it is killed: there is nothing left for
            it to do, and interpreters full of native libraries take seconds to come down, or hang.
        log_limit_bytes: About how large train.log may become; above that its middle is left out.
        start: Brings its processes into being; `runner.standby` has another way than to start the command.
        after: Called when its group is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        run_dir: Path,
        *,
        environ: Mapping[str, str],
        exit_grace_s: float = 2.0,
        log_limit_bytes: int = LIMIT_BYTES,
        start: Callable[..., ProcessGroup] = ProcessGroup,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.log_path = run_dir / "train.log"
        self._last: RunEnd | None = None
        self._asked_to_stop = False
        self._terminated = self._closed = False
        self._exit_grace_s = exit_grace_s
        self._after = after
        self._partial = b""
        self._refused = 0
        self._log = TrainLog(self.log_path, log_limit_bytes)
        self._gave_sign = False
        self._kills_before = kernel_kills()
        with self.log_path.open("ab") as log:
            self._group = start(command, log=log, environ=environ)

    @property
    def pid(self) -> int:
        """Process id of the child, which is also the id of its group."""
        return self._group.pid

    @property
    def running(self) -> bool:
        """Whether the child itself still runs."""
        return self._group.running

    @property
    def has_helpers(self) -> bool:
        """Whether it has started processes that still run."""
        return members(self.pid) != [self.pid]

    @property
    def gave_sign(self) -> bool:
        """Whether it has printed something or written an empty line into its event pipe since this was last asked."""
        gave, self._gave_sign = self._gave_sign, False
        return gave

    def events(self, tick_s: float = 0.2) -> Iterator[ChildEvent | None]:
        """The child's events as they come, to its exit; None whenever `tick_s` seconds passed without one.

        Lines that are no events are logged, shortened, and otherwise passed over.
        """
        exit_deadline = float("inf")
        next_look = 0.0
        while True:
            if time.monotonic() >= next_look:
                self._gave_sign |= self._log.look()
                next_look = time.monotonic() + LOG_LOOK_S
            # Asked before the pipe is looked at: what a child wrote before its exit is in the pipe by then.
            gone = not self.running
            ready, _, _ = select.select([self._group.events], [], [], 0.0 if gone else tick_s)
            data = os.read(self._group.events, 1 << 16) if ready else b""
            if data:
                yield from self._parse(data)
                continue
            if gone:
                break
            if self._last is not None:
                exit_deadline = min(exit_deadline, time.monotonic() + self._exit_grace_s)
                if time.monotonic() > exit_deadline:
                    logger.info("Child %d did not exit after its last event; killing it.", self.pid)
                    self.kill()
            if ready:  # The pipe is closed, the child not yet gone: there is nothing more to wait for but its exit.
                with suppress(subprocess.TimeoutExpired):
                    self._group.wait(tick_s)
            yield None
        if self._partial:
            self._refuse(self._partial)
            self._partial = b""
        if self._refused > _REFUSED_TOLD:
            logger.warning("Child %d wrote %d lines that are no events.", self.pid, self._refused)
        self._log.look()

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint and the end. Only the first call does something."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            # The child alone: data loaders must live until its checkpoint is written.
            self._group.signal_leader(signal.SIGTERM)

    def terminate(self) -> None:
        """Ask everything in the group to end, with or without a checkpoint. Only the first call does something."""
        if not self._terminated:
            self._asked_to_stop = self._terminated = True
            self._group.terminate()

    def write_stacks(self, *, leader: bool) -> None:
        """Have the Python processes of the group write the stacks of their threads into the log, and end.

        Args:
            leader: Whether the child itself, too. It may be the one that copies what its ranks print into the log.
        """
        for pid in members(self.pid):
            if leader or pid != self.pid:
                # Written by the signal's handler itself (PYTHONFAULTHANDLER), whatever the interpreter is doing.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGABRT)

    def kill(self) -> None:
        """End the whole group at once, whatever it does."""
        self._group.kill()

    def end(self) -> RunEnd:
        """How the child ended, once `events` is exhausted."""
        status = self._group.wait()
        if self._terminated and isinstance(self._last, RunFailed):
            # Its helpers were ended with it, and what they leave behind looks like a failure.
            return RunInterrupted(step=0, checkpoint=None)
        if self._last is not None:
            if not self._group.killed and status != _EXIT_STATUS_OF[type(self._last)]:
                logger.warning("Child %d ended with %s after %s.", self.pid, name_of_death(status), self._last.kind)
            return self._last
        if self._asked_to_stop or status == -signal.SIGTERM:
            # It had not yet installed its handler, or was killed when its grace was over: stopped all the same.
            return RunInterrupted(step=0, checkpoint=None)
        if status == 1 and self._log.holds(_TOO_LATE):
            return RunFailed(
                code=STALLED,
                message="Training has not moved for training.step_timeout_s, inside native code, so it was ended.",
                hint=f"The stacks of all threads are in {self.log_path}. The newest checkpoint is kept.",
            )
        return describe_silent_death(
            "training process",
            status,
            self.log_path,
            self.log_tail(),
            kernel_killed=kernel_kills() - self._kills_before,
            disk_full=is_full(self.log_path.parent),
        )

    def log_tail(self) -> str:
        """The last lines of its log, tokens redacted."""
        return self._log.tail()

    def close(self) -> None:
        """End the group, wherever it stands, and free what belongs to it."""
        if not self._closed:
            self._closed = True
            self._group.close()
            self._after()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parse(self, data: bytes) -> Iterator[ChildEvent]:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_LIMIT_BYTES:
            self._refuse(self._partial)
            self._partial = b""
        for line in lines:
            if not line:
                self._gave_sign = True
                continue
            try:
                event = parse_event(line)
            except ValidationError:
                self._refuse(line)
                continue
            if not isinstance(event, ChildEvent) or self._last is not None:
                self._refuse(line)
                continue
            if isinstance(event, RunEnd):
                self._last = event
            yield event

    def _refuse(self, line: bytes) -> None:
        self._refused += 1
        if self._refused <= _REFUSED_TOLD:
            text = redact(line[: 10 * _REFUSED_BYTES].decode("utf-8", "replace"))[:_REFUSED_BYTES]
            logger.warning("Child %d wrote something that is no event: %s", self.pid, text)
