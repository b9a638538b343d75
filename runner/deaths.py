"""Puts into words how a process ended that could no longer say so itself."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from runner.errors import DiskFullError, MemoryExhaustedError
from runner.events import RunFailed

HUNG = "hung"
"""Code of a child that gave no sign of life (`runner.silence`)."""
_LEAST_FREE_BYTES = 1 << 16
_COUNTERS = Path("/proc/vmstat")


def kernel_kills() -> int:
    """How many processes the kernel's out-of-memory killer has ended on this host since it started, in all groups.

    Source: `oom_kill` in Linux' /proc/vmstat, since 4.13; 0 where nothing counts.
    """
    try:
        lines = _COUNTERS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def is_full(folder: Path) -> bool:
    """Whether no file can grow there any more."""
    try:
        return shutil.disk_usage(folder).free < _LEAST_FREE_BYTES
    except OSError:
        return False


def describe_silent_death(
    process: str, status: int, log_path: Path, tail: str, *, kernel_killed: int = 0, disk_full: bool = False
) -> RunFailed:
    """Say how it ended. Pure.

    Args:
        process: What to call it.
        status: Its exit status, negative for a signal.
        log_path: Where its whole output is.
        tail: The last of it, tokens redacted.
        kernel_killed: Processes that the kernel has ended on this host for want of memory since it started.
        disk_full: Whether its folder has no space left.
    """
    death = name_of_death(status)
    code, message, advice = "child-died", f"The {process} ended with {death} before it could say why.", ""
    if status == -signal.SIGKILL:
        levers = "give the host more memory, or lower per_device_train_batch_size or max_length."
        advice = f"Most often this is the out-of-memory killer of the kernel or of a container: {levers} "
        if kernel_killed > 0:
            code = MemoryExhaustedError.code
            message = f"The {process} ended with {death}: the kernel killed it because the host ran out of memory."
            advice = f"{levers[0].upper()}{levers[1:]} "
    elif disk_full:
        code = DiskFullError.code
        message = f"The {process} ended with {death}, and the disk is full where the run directory lies."
        advice = "Free some space, then start the job again. "
    return RunFailed(code=code, message=message, hint=f"{advice}{_log(log_path, tail)}")


def describe_hang(process: str, silence: str, log_path: Path, tail: str) -> RunFailed:
    """Say that it gave no sign of life and was ended. Pure.

    Args:
        process: What to call it.
        silence: What it has not done for how long.
        log_path: Where its whole output is, with the stacks that it was made to write.
        tail: The last of it, tokens redacted.
    """
    return RunFailed(
        code=HUNG,
        message=f"The {process} {silence}, so it was ended.",
        hint=(
            "Where such a silence is no hang, raise QLORA_SILENCE_S or QLORA_BUSY_SILENCE_S on the host. The newest "
            f"checkpoint is kept. {_log(log_path, tail)}"
        ),
    )


def _log(path: Path, tail: str) -> str:
    whole = f"Its whole log is {path}."
    return f"{whole} Its last lines:\n{tail}" if tail else whole


def name_of_death(status: int) -> str:
    """An exit status in words: `exit status 3`, `SIGSEGV (Segmentation fault)`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"signal {-status}"
    return f"{number.name} ({signal.strsignal(number)})"
