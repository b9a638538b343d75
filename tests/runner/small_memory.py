"""A control group with little memory, in which the kernel kills whoever takes more. Needs root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def small_memory(limit_bytes: int) -> Iterator[Path]:
    """Make the group; the file that is yielded takes the id of a process that shall be in it.

    Skips the test where this user may not make one.
    """
    first, limit = ("memory", "memory.limit_in_bytes") if (_ROOT / "memory").is_dir() else ("", "memory.max")
    group = _ROOT / first / f"small-memory-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        group.rmdir()
