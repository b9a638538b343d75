"""How much memory this process may still take, and how much it holds, as Linux tells it.

Elsewhere every answer is None: nobody knows. Imports nothing of this project.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60
"""From here on a limit is none; cgroup v1 writes the largest number of pages in bytes."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the host, its control groups and its own limits leave, the least.

    Memory that the kernel could take back from its file cache counts as available.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    limits = [*_host(root), *_control_groups(root), *_own_limits(root)]
    return max(0, min(limits)) if limits else None


def refuses_memory(root: Path = Path("/")) -> bool:
    """Whether memory that runs out is refused to this process, because a limit of its own is what it meets first.

    Where the host's or a control group's memory is used up, the kernel ends the process instead.
    """
    own, others = [*_own_limits(root)], [*_host(root), *_control_groups(root)]
    return bool(own) and min(own) < min(others, default=_UNLIMITED)


def resident_bytes(root: Path = Path("/")) -> tuple[int, int] | None:
    """Bytes of this process in memory: those no file stands behind, heap and buffers, and those of mapped files.

    The second can be dropped and read again, so the first are what runs out.
    """
    try:
        _, resident, shared = (root / "proc/self/statm").read_text(encoding="ascii").split()[:3]
    except (OSError, ValueError):
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return (int(resident) - int(shared)) * page, int(shared) * page


def _host(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _control_groups(root: Path) -> Iterator[int]:
    """What the memory limits of the groups around this process leave, from its own up to the outermost."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = mount / path.strip("/")
        # Inside a container the path may be the host's, and the mount shows the container's own group at its top.
        for folder in (group, *group.parents):
            yield from _left_of(folder, *names)
            if folder == mount:
                break


def _left_of(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    limit, usage = _number(folder / limit_name), _number(folder / usage_name)
    if limit is None or usage is None or limit >= _UNLIMITED:
        return
    cache = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(f"{cache_name} ")]
    yield limit - usage + sum(cache)


def _own_limits(root: Path) -> Iterator[int]:
    """What this process' limits on its data and on its address space leave."""
    for limit, name in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            lines = _lines(root / "proc/self/status")
            yield from (soft - int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _number(path: Path) -> int | None:
    """The number in a file, None where there is no file or it says `max`."""
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
