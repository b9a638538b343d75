"""A process group that dies with this process, whatever happens to either.

A small shell line stands between us and the command. It leaves a watcher in the command's process group that reads a
pipe whose other end only this process holds, and then becomes the command. However this process ends, `kill -9`
included, the pipe closes and the watcher kills the whole group: the child, its data loaders, its verifying process.
Nothing in the child has to cooperate, so native code that holds the interpreter's lock cannot delay it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import BinaryIO

EVENTS_FD = 4
"""The descriptor on which a child finds its event pipe. Of one digit, because a plain shell knows no others."""
WATCHER = "sh"
"""The watcher's name in the process table."""
_LIFELINE = (
    "exec 3<&0 4>&1 </dev/null >&2; "
    # `read` returns when the pipe's other end is closed; `kill 0` reaches the whole group, the watcher last. TERM to
    # the group is a request to the others.
    "(trap '' TERM; exec 4>&-; read -r _ <&3; kill -KILL 0) & exec \"$@\" 3<&-"
)


class ProcessGroup:
    """A command that runs as the leader of a group and session of its own.

    Args:
        command: What to run; finds the writing end of `events` on descriptor `EVENTS_FD`.
        log: Gets its standard output and error.
        environ: Its whole environment.
        pass_fds: Further descriptors that it inherits.
    """

    def __init__(
        self, command: Sequence[str], *, log: BinaryIO, environ: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self._killed = False
        self.resources = ExitStack()
        """What is freed when the group is gone."""
        self.events, events_child = os.pipe()
        lifeline_child, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LIFELINE, "child", *command],
                stdin=lifeline_child,
                stdout=events_child,
                stderr=log,
                env=dict(environ),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except BaseException:
            os.close(self.events)
            os.close(self._lifeline)
            raise
        finally:
            os.close(events_child)
            os.close(lifeline_child)

    @property
    def pid(self) -> int:
        """Process id of the leader, which is also the id of the group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the leader itself still runs."""
        return self._process.poll() is None

    @property
    def killed(self) -> bool:
        """Whether we have killed it."""
        return self._killed

    def wait(self, timeout_s: float | None = None) -> int:
        """The leader's exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        return self._process.wait(timeout_s)

    def signal_leader(self, number: signal.Signals) -> None:
        """Send a signal to the leader alone."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM to all of the group; the watcher stays."""
        # A group that has been killed has no watcher, so its id may already be somebody else's.
        if not self._killed:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once, whatever it does."""
        # Until its first killing the group holds the watcher, so its id is still its own even when the leader is gone.
        # Afterwards it is its own only as long as we have not collected the leader.
        if self._killed and not self.running:
            return
        self._killed = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the group, wherever it stands, and free what belongs to it."""
        if self.events < 0:
            return
        self.kill()
        self._process.wait()
        os.close(self._lifeline)
        os.close(self.events)
        self.events = self._lifeline = -1
        self.resources.close()
