"""Tells a child that hangs from one that is busy, without its help: whatever hangs cannot be asked.

Inside the training loop the child watches its own steps (`runner.training.loop.stall_watch`). This is for everything
else, from its first import to its exit: downloads, loading, evaluations and the verification report nothing for as
long as they take, but they compute, read and write.
"""

from __future__ import annotations

import time

from runner.child import Child
from runner.group_work import Work, work_of

LOOKS = 20
"""Looks within the shorter limit."""
_CPU_SHARE = 0.02
"""Of one core; threads that only wait and look every tenth of a second stay well below."""
_IO_BYTES_PER_LOOK = 1 << 16
_NOTHING = Work(0.0, 0)


class SilenceWatch:
    """Counts for how long a child has given no sign of life.

    Args:
        child: The child.
        idle_s: How long it may neither report, print, compute nor read and write.
        busy_s: How long it may compute, read and write without a report or a line in its log.
    """

    def __init__(self, child: Child, *, idle_s: float, busy_s: float) -> None:
        self._child = child
        self._idle_s, self._busy_s = idle_s, busy_s
        self._every_s = min(idle_s, busy_s) / LOOKS
        self._next_look = time.monotonic() + self._every_s
        self._work = work_of(child.pid)
        # Looks and not the clock: a worker that was itself suspended cannot say that the child was silent.
        self._idle_looks = self._busy_looks = 0

    def heard(self) -> None:
        """The child has reported something."""
        self._idle_looks = self._busy_looks = 0

    def hung(self) -> str | None:
        """Look, if it is time to.

        Returns:
            What the child has not done for how long, once a limit is reached.
        """
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + self._every_s
        if self._child.gave_sign:
            self.heard()
        self._busy_looks += 1
        self._idle_looks = 0 if self._has_worked() else self._idle_looks + 1
        if self._idle_looks * self._every_s >= self._idle_s:
            return f"has neither reported, printed, computed nor read or written for {self._idle_s:g} s"
        if self._busy_looks * self._every_s >= self._busy_s:
            return f"has been busy for {self._busy_s:g} s without a report or a printed line"
        return None

    def _has_worked(self) -> bool:
        before, self._work = self._work, work_of(self._child.pid)
        done = [(now, before.get(pid, _NOTHING)) for pid, now in self._work.items()]
        cpu_s = sum(now.cpu_s - then.cpu_s for now, then in done)
        io_bytes = sum(now.io_bytes - then.io_bytes for now, then in done)
        return cpu_s >= _CPU_SHARE * self._every_s or io_bytes >= _IO_BYTES_PER_LOOK
