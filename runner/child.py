"""One training child: a process group of its own, its events, and how it ends.

A small shell line stands between us and the child. It leaves a watcher in the child's process group that reads a pipe
whose other end only this process holds, and then becomes the child. However this process ends, `kill -9` included, the
pipe closes and the watcher kills the whole group: the child, its data loaders, its verifying process. Nothing in the
child has to cooperate, so native code that holds the interpreter's lock cannot delay it.
"""

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

from runner.event_lines import parse_event
from runner.events import ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.redaction import redact
from runner.settings import RunnerSettings

logger = logging.getLogger(__name__)

EVENTS_FD = 4
"""The descriptor on which a child finds its event pipe. Of one digit, because a plain shell knows no others."""
STALLED = "stalled"
"""Code of a training that does not move."""
_LIFELINE = (
    "exec 3<&0 4>&1 </dev/null >&2; "
    # `read` returns when the pipe's other end is closed; `kill 0` reaches the whole group, the watcher last.
    '(exec 4>&-; read -r _ <&3; kill -KILL 0) & exec "$@" 3<&-'
)
_TOO_LATE = b"\nTimeout ("
"""faulthandler's heading where the child's stall watch could not speak (`runner.training.loop.stall_watch`)."""
_LINE_LIMIT_BYTES = 1 << 20
_REFUSED_BYTES = 200
_LOG_TAIL_CHARACTERS = 1000

RunEnd = RunSucceeded | RunFailed | RunInterrupted
"""How a child ended: its own last event, or a `RunFailed` that we had to write for it."""
_EXIT_STATUS_OF: dict[type[RunEnd], int] = {RunSucceeded: 0, RunFailed: 1, RunInterrupted: 3}
Spawn = Callable[[Path], "Child"]
"""Starts the child of a run directory; tests put a small script in the training's place."""


def training_command(run_dir: Path) -> list[str]:
    """The command line of a training child."""
    return [sys.executable, "-m", "runner.training", str(run_dir), "--events-fd", str(EVENTS_FD)]


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
        return Child(training_command(run_dir), run_dir, environ=child_environment(settings))

    return spawn


class Child:
    """A running child; use it as a context manager so that its group is gone afterwards.

    Args:
        command: What to run; finds its event pipe on descriptor `EVENTS_FD`.
        run_dir: Standard output and error go to `train.log` in it.
        environ: The child's whole environment.
        exit_grace_s: Seconds between its last event and its exit, after which it is killed: there is nothing left for
            it to do, and interpreters full of native libraries take seconds to come down, or hang.
    """

    def __init__(
        self, command: Sequence[str], run_dir: Path, *, environ: Mapping[str, str], exit_grace_s: float = 2.0
    ) -> None:
        self.log_path = run_dir / "train.log"
        self._last: RunEnd | None = None
        self._asked_to_stop = False
        self._killed = False
        self._exit_grace_s = exit_grace_s
        self._partial = b""
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._events, events_child = os.pipe()
        lifeline_child, self._lifeline = os.pipe()
        try:
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _LIFELINE, "child", *command],
                    stdin=lifeline_child,
                    stdout=events_child,
                    stderr=log,
                    env=dict(environ),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._events)
            os.close(self._lifeline)
            raise
        finally:
            os.close(events_child)
            os.close(lifeline_child)

    @property
    def pid(self) -> int:
        """Process id of the child, which is also the id of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the child itself still runs."""
        return self._process.poll() is None

    def events(self, tick_s: float = 0.2) -> Iterator[ChildEvent | None]:
        """The child's events as they come, to its exit; None whenever `tick_s` seconds passed without one.

        Lines that are no events are logged, shortened, and otherwise passed over.
        """
        exit_deadline = float("inf")
        while True:
            # Asked before the pipe is looked at: what a child wrote before its exit is in the pipe by then.
            gone = not self.running
            ready, _, _ = select.select([self._events], [], [], 0.0 if gone else tick_s)
            data = os.read(self._events, 1 << 16) if ready else b""
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
                    self._process.wait(tick_s)
            yield None
        if self._partial:
            self._refuse(self._partial)
            self._partial = b""

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint and the end. Only the first call does something."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            # The child alone: data loaders must live until its checkpoint is written.
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once, whatever it does."""
        # Until its first killing the group holds the watcher, so its id is still its own even when the child is gone.
        # Afterwards it is its own only as long as we have not collected the child.
        if self._killed and not self.running:
            return
        self._killed = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> RunEnd:
        """How the child ended, once `events` is exhausted."""
        status = self._process.wait()
        if self._last is not None:
            if not self._killed and status != _EXIT_STATUS_OF[type(self._last)]:
                logger.warning("Child %d ended with %s after %s.", self.pid, _death(status), self._last.kind)
            return self._last
        if self._asked_to_stop or status == -signal.SIGTERM:
            # It had not yet installed its handler, or was killed when its grace was over: stopped all the same.
            return RunInterrupted(step=0, checkpoint=None)
        if status == 1 and _TOO_LATE in self._log():
            return RunFailed(
                code=STALLED,
                message="Training has not moved for training.step_timeout_s, inside native code, so it was ended.",
                hint=f"The stacks of all threads are in {self.log_path}. The newest checkpoint is kept.",
            )
        return describe_silent_death("training process", status, self.log_path, self._log_tail())

    def close(self) -> None:
        """End the group, wherever it stands, and free what belongs to it."""
        if self._events < 0:
            return
        self.kill()
        self._process.wait()
        os.close(self._lifeline)
        os.close(self._events)
        self._events = self._lifeline = -1

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
        text = redact(line[:_REFUSED_BYTES].decode("utf-8", "replace"))
        logger.warning("Child %d wrote something that is no event: %s", self.pid, text)

    def _log(self) -> bytes:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return b"\n" + log.read()

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return redact("\n".join(line for line in lines if line.strip()).strip()[-_LOG_TAIL_CHARACTERS:])


def describe_silent_death(process: str, status: int, log_path: Path, tail: str) -> RunFailed:
    """Say how a process ended that could no longer say so itself. Pure.

    Args:
        process: What to call it.
        status: Its exit status, negative for a signal.
        log_path: Where its whole output is.
        tail: The last of it, tokens redacted.
    """
    advice = f"Its whole log is {log_path}."
    if status == -signal.SIGKILL:
        advice = (
            "Most often this is the kernel's out-of-memory killer: give the host more memory, or lower "
            f"per_device_train_batch_size or max_length. {advice}"
        )
    return RunFailed(
        code="child-died",
        message=f"The {process} ended with {_death(status)} before it could say why.",
        hint=f"{advice} Its last lines:\n{tail}" if tail else advice,
    )


def _death(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"signal {-status}"
    return f"{number.name} ({signal.strsignal(number)})"
