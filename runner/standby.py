"""Keeps one child ready that has imported the training stack, so that a job starts in under a second.

The next one is started when a job is over and not before: its imports would take processor time and memory from the
training that runs. One that is not ready when a job comes gets it all the same, being ahead of a cold start. One that
died, or that has another environment than a child would have now, is not used.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from runner.child import TRAINING_PROGRAM, Child, Spawn, child_environment, spawn_training, training_arguments
from runner.group_work import resident_bytes
from runner.process_group import ProcessGroup
from runner.redaction import redact
from runner.settings import RunnerSettings

logger = logging.getLogger(__name__)

READY = b"ready"
"""What a standby says when its imports are done."""
LOOK_S = 1.0
"""Seconds between two looks at a standby, how large it is and whether it lives."""
_OUTPUT_TOLD = 1000


class Standby:
    """A way to start children (`runner.child.Spawn`), the one that waits first; a context manager.

    Args:
        settings: Folders of this host; `settings.child.standby_bytes` is the most that a standby may hold.
        program: What a child runs, before its arguments; tests put a small script in the training's place.
    """

    def __init__(self, settings: RunnerSettings, program: Sequence[str] = TRAINING_PROGRAM) -> None:
        self._settings = settings
        self._program = program
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None
        self._over = False

    def __call__(self, run_dir: Path) -> Child:
        """Start the child of a run directory."""
        return Child(
            [*self._program, *training_arguments(run_dir)],
            run_dir,
            environ=child_environment(self._settings),
            log_limit_bytes=self._settings.child.log_bytes,
            start=self._start,
            after=self.prepare,
        )

    def prepare(self) -> None:
        """Have a standby, if it may be."""
        with self._lock:
            if self._waiting is not None or self._over:
                return
            try:
                self._waiting = _Waiting(self._program, child_environment(self._settings))
            except OSError as error:
                # The job that is just over must not fail of it; the next one begins cold.
                logger.warning("No standby child can be started: %s", error)
                return
            threading.Thread(target=self._look_after, args=(self._waiting,), name="standby", daemon=True).start()

    def __enter__(self) -> Self:
        self.prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._dismiss()

    def _start(self, command: Sequence[str], *, log: BinaryIO, environ: Mapping[str, str]) -> ProcessGroup:
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.environ == environ and waiting.take(command[len(self._program) :], log):
            return waiting.group
        if waiting is not None:
            logger.info("The standby child cannot be used; a child is started anew.")
            waiting.group.close()
        return ProcessGroup(command, log=log, environ=environ)

    def _look_after(self, waiting: _Waiting) -> None:
        """See to it that a standby is small and alive until it is taken."""
        limit = self._settings.child.standby_bytes
        ready = False
        while waiting.waits:
            if waiting.next_word() == READY:
                ready = True
                logger.info("The standby child is ready after %.1f s.", time.monotonic() - waiting.since)
            held = resident_bytes(waiting.group.pid)
            if held > limit and self._dismiss(waiting):
                logger.warning(
                    "The standby child holds %d MB, more than QLORA_STANDBY_MB = %d; this worker goes on without.",
                    held >> 20,
                    limit >> 20,
                )
                self._over = True
                return
        output = waiting.output()
        if self._dismiss(waiting):
            logger.warning("The standby child has died: %s", output or "it printed nothing.")
            # One that never got ready would not do so the next time; after the next job it is tried again.
            if ready:
                self.prepare()

    def _dismiss(self, one: _Waiting | None = None) -> bool:
        """End the standby, if it still waits."""
        with self._lock:
            waiting = self._waiting
            if waiting is None or (one is not None and one is not waiting):
                return False
            self._waiting = None
        waiting.group.close()
        return True


@contextmanager
def spawning(settings: RunnerSettings, spawn: Spawn | None = None) -> Iterator[Spawn]:
    """The way that a worker starts its children: with a standby, unless it is switched off or another way is given."""
    if spawn is not None or not settings.child.standby_bytes:
        yield spawn or spawn_training(settings)
        return
    with Standby(settings) as standby:
        yield standby


class _Waiting:
    """A child without a job."""

    def __init__(self, program: Sequence[str], environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.since = time.monotonic()
        self.taken = False
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the group
        # Whole messages, so that nobody has to put halves together.
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(LOOK_S)
        command, inherited = [*program, "--standby", str(theirs.fileno())], (theirs.fileno(),)
        try:
            self.group = ProcessGroup(command, log=self._output, environ=environ, pass_fds=inherited)
        except BaseException:
            self._control.close()
            self._output.close()
            raise
        finally:
            theirs.close()
        # Not before: a socket that closes takes along what was sent and not yet read.
        self.group.resources.callback(self._control.close)
        self.group.resources.callback(self._output.close)

    @property
    def waits(self) -> bool:
        """Whether it lives and has no job. Asked anew and again: its watcher holds its end of the socket, too."""
        return not self.taken and self.group.running

    def next_word(self) -> bytes:
        """Wait for what it says, or for a while."""
        try:
            return self._control.recv(64)
        except OSError:
            return b""

    def take(self, arguments: Sequence[str], log: BinaryIO) -> bool:
        """Give it its job: what its program gets as arguments, and where its output goes; False when it is gone."""
        if not self.group.running:
            return False
        # What a full disk does not take, the child will say in its own words.
        with suppress(OSError):
            os.write(log.fileno(), self._read_output())
        try:
            socket.send_fds(self._control, [json.dumps(arguments).encode()], [log.fileno()])
        except OSError:
            return False
        self.taken = True
        return True

    def output(self) -> str:
        """The end of what it has printed, tokens redacted."""
        if self._output.closed:
            return ""
        return redact(self._read_output().decode("utf-8", "replace").strip()[-_OUTPUT_TOLD:])

    def _read_output(self) -> bytes:
        return os.pread(self._output.fileno(), 1 << 20, 0)
