"""What this host trains on, found out without loading torch."""

from __future__ import annotations

import os
import shutil
import subprocess

_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_MIB_PER_GIB = 1024


def describe_device() -> str:
    """Name the GPUs as the driver does, or count the CPU threads this process may use.

    Returns:
        Such as `NVIDIA H100 80GB HBM3 (80 GiB)`, `2 x NVIDIA L4 (22 GiB)` or `cpu (2 threads)`.
    """
    gpus = _gpus()
    if not gpus:
        return f"cpu ({len(os.sched_getaffinity(0))} threads)"
    return ", ".join(f"{gpus.count(gpu)} x {gpu}" if gpus.count(gpu) > 1 else gpu for gpu in dict.fromkeys(gpus))


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    if answer.returncode != 0:  # A machine with the tool but without a driver or a device.
        return []
    rows = [row.rsplit(",", 1) for row in answer.stdout.splitlines() if "," in row]
    return [f"{name.strip()} ({_gib(memory)})" for name, memory in rows]


def _gib(mebibytes: str) -> str:
    text = mebibytes.strip()
    return f"{int(text) / _MIB_PER_GIB:.0f} GiB" if text.isdigit() else "memory unknown"
