"""Who uses a GPU, as the driver tells it: a worker takes no job while somebody else's process is on its devices.

Graphics alone do not count, and what runs in another container the driver may not show. Written after NVIDIA's
documentation; no GPU was at hand to try it.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from runner.device import ask_driver
from runner.pools import Gpu
from runner.process_identity import descends_from
from runner.redaction import redact
from runner.reports import Record

_FIELDS = "gpu_uuid,pid,used_memory,process_name"


class GpuProcess(Record):
    """A process that computes on a GPU."""

    gpu_uuid: str
    pid: int
    memory_mib: int | None
    """What it holds there, None where the driver does not say."""
    command: str


def parse_gpu_processes(answer: str) -> tuple[GpuProcess, ...]:
    """Read what `nvidia-smi --query-compute-apps` says, one line a process and GPU; other lines are left out. Pure."""
    found = []
    for line in answer.splitlines():
        gpu_uuid, pid, memory, command = (*(field.strip() for field in line.split(",", 3)), "", "", "", "")[:4]
        if pid.isdecimal():
            memory_mib = int(memory) if memory.isdecimal() else None
            found.append(GpuProcess(gpu_uuid=gpu_uuid, pid=int(pid), memory_mib=memory_mib, command=command))
    return tuple(found)


def who_uses(gpus: Sequence[Gpu]) -> str | None:
    """Say who else computes on these GPUs, None where nobody does but this process and what it has started."""
    if not gpus:
        return None
    answer = ask_driver("compute-apps", _FIELDS)
    if answer is None:
        return "The driver does not say who uses the GPUs: nvidia-smi --query-compute-apps fails."
    named = {gpu.uuid: gpu for gpu in gpus}
    foreign = [
        process
        for process in parse_gpu_processes(answer)
        if process.gpu_uuid in named and not descends_from(process.pid, os.getpid())
    ]
    return "; ".join(_told(process, named[process.gpu_uuid]) for process in foreign) or None


def _told(process: GpuProcess, gpu: Gpu) -> str:
    memory = "memory unknown" if process.memory_mib is None else f"{process.memory_mib} MiB"
    command = redact(process.command) or "a program without a name"
    return f"{gpu.told} is used by pid {process.pid} of {_user(process.pid)}, {command}, {memory}"


def _user(pid: int) -> str:
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return "somebody who cannot be seen from here"
    try:
        return f"user {pwd.getpwuid(owner).pw_name}"
    except KeyError:
        return f"user {owner}"
