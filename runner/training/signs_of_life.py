"""Counts what moves in a training, over all of its processes together.

A rank that waits for a slower one is silent without hanging, and one that hangs makes the others wait. So each looks at
everybody's signs: training stands still only when nobody moves. They lie in a file that all have mapped, so that giving
one takes no time and hearing them needs nobody's help.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

_COUNTER_BYTES = 8


def size_bytes(count: int) -> int:
    """Size of the file that so many processes share."""
    return _COUNTER_BYTES * count


class SignsOfLife:
    """One process's way to give signs, and to hear everybody's.

    Args:
        fd: A file of `size_bytes(count)` zeros that all have open; None for a process that trains alone.
        rank: Which process this is.
        count: How many there are.
        beat: Called with every sign of this process, to tell it to whoever watches from outside.
    """

    def __init__(
        self, fd: int | None = None, rank: int = 0, count: int = 1, *, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._rank = rank
        self._beat = beat
        shared = bytearray(size_bytes(count)) if fd is None else mmap.mmap(fd, size_bytes(count))
        self._counters = memoryview(shared).cast("Q")

    def give(self) -> None:
        """Say that this process has moved."""
        self._counters[self._rank] += 1
        self._beat()

    def heard(self) -> int:
        """How many signs all have given so far."""
        return sum(self._counters)
