"""A child's `train.log`: kept within a size, read from the end, tokens redacted."""

from __future__ import annotations

import os
from pathlib import Path

from runner.redaction import redact

LIMIT_BYTES = 64 << 20
_TAIL_BYTES = 1 << 14
_TAIL_CHARACTERS = 1000


class TrainLog:
    """What one child prints, from where the file ended when it started.

    Args:
        path: The file; who writes appends (`O_APPEND`).
        limit_bytes: Above this the middle is left out: the first half of it stays, and the newest quarter.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._start = path.stat().st_size if path.exists() else 0
        self._head_end: int | None = None
        self._left_out = 0
        self._marker = b""
        self._seen = 0

    def look(self) -> bool:
        """Leave out the middle of a file that has grown too large.

        A descriptor that appends finds the new end by itself, so whoever floods it is not held up and needs not
        know. What comes between our reading and our cutting is left out, too.

        Returns:
            Whether something was written since the last look.
        """
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return False
        grown, self._seen = size > self._seen, size
        # A device has no size, and nothing to be cut.
        if size > self._limit_bytes and self.path.is_file():
            self._cut()
        return grown

    def tail(self) -> str:
        """Its last lines, tokens redacted; at most 1000 characters."""
        with self.path.open("rb") as log:
            start = max(self._start, log.seek(0, os.SEEK_END) - _TAIL_BYTES)
            log.seek(start)
            lines = log.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()
        if start > self._start and len(lines) > 1:
            del lines[0]  # most likely the second half of one, and half a token is not known for one
        # Redacted before it is cut, for the same reason.
        return redact("\n".join(line for line in lines if line.strip()).strip())[-_TAIL_CHARACTERS:]

    def holds(self, mark: bytes) -> bool:
        """Whether a line begins with this."""
        with self.path.open("rb") as log:
            log.seek(self._start)
            return b"\n" + mark in b"\n" + log.read(2 * self._limit_bytes)

    def _cut(self) -> None:
        with self.path.open("r+b") as log:
            if self._head_end is None:
                half = self._limit_bytes // 2
                self._head_end = log.read(half).rfind(b"\n") + 1 or half
                self._start = min(self._start, self._head_end)
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._head_end + len(self._marker), size - self._limit_bytes // 4))
            tail = log.read(self._limit_bytes // 4)
            tail = tail[tail.find(b"\n") + 1 :]
            log.truncate(self._head_end)
        self._left_out += size - self._head_end - len(self._marker) - len(tail)
        self._marker = b"[... %d bytes left out here ...]\n" % self._left_out
        with self.path.open("ab") as log:
            log.write(self._marker + tail)
            self._seen = log.tell()
