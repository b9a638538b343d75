"""Which process is meant, for good: ids come again, after a reboot or when all have been used. Linux' /proc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from runner.reports import Record

_PROC = Path("/proc")


class ProcessIdentity(Record):
    """A process of some boot of some machine."""

    pid: int
    started: int
    """Clock ticks between the boot and its start, 0 where it was gone already."""
    boot: str
    """The boot's id."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this id now."""
        stat = _read_stat(_PROC / str(pid))
        return cls(pid=pid, started=0 if stat is None else stat.started, boot=boot_id())

    def group(self) -> list[int]:
        """Process ids that are left of the group that it led: none after a reboot, or when the id is another's."""
        if self.boot != boot_id():
            return []
        leader = _read_stat(_PROC / str(self.pid))
        if leader is not None and leader.started != self.started:
            return []
        return [pid for pid, stat in _all_processes() if stat.group == self.pid and stat.state not in _DEAD]


class _Stat(Record):
    """What `/proc/<pid>/stat` says, as far as it matters here."""

    state: str
    parent: int
    group: int
    started: int


_DEAD = {"Z", "X"}
"""States of a process that runs no more, though nobody has collected it."""


def boot_id() -> str:
    """An id that is new with every boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a living process is another one or was started by it, directly or not."""
    while pid > 1:
        if pid == ancestor:
            return True
        stat = _read_stat(_PROC / str(pid))
        if stat is None:
            return False
        pid = stat.parent
    return False


def _all_processes() -> Iterator[tuple[int, _Stat]]:
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and (stat := _read_stat(folder)) is not None:
            yield int(folder.name), stat


def _read_stat(folder: Path) -> _Stat | None:
    try:
        text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None  # It has gone.
    # The name is in brackets and may hold brackets itself; proc_pid_stat(5) numbers the fields behind it from 3.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], parent=int(fields[1]), group=int(fields[2]), started=int(fields[19]))
