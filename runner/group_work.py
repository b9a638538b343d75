"""What a process group does, seen from outside: processor time, and bytes read and written. Linux' /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.process_group import WATCHER

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Work:
    """What a process has done since it began."""

    cpu_s: float
    io_bytes: int
    """By `read` and `write`, of whatever: files, pipes, most sockets."""


def members(group: int) -> list[int]:
    """Process ids of a group, youngest first, without its watcher."""
    return sorted((pid for pid, name, _ in _processes(group) if name != WATCHER), reverse=True)


def resident_bytes(pid: int) -> int:
    """Memory that a process holds, shared pages included; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * _PAGE_BYTES


def work_of(group: int) -> dict[int, Work]:
    """What each process of a group has done so far, by process id."""
    return {pid: Work(cpu_s, _io_bytes(pid)) for pid, _, cpu_s in _processes(group)}


def _processes(group: int) -> Iterator[tuple[int, str, float]]:
    """Id, name and processor seconds."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # It has gone meanwhile.
        # The name is in brackets and may hold brackets itself; proc_pid_stat(5) numbers the fields behind it from 3.
        before, _, after = stat.rpartition(")")
        fields = after.split()
        if int(fields[2]) == group:
            yield int(entry.name), before.partition("(")[2], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _io_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0  # It has gone, or the kernel does not count.
    return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))
