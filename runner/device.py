"""What this host trains on, found out without loading torch: the driver's own tool says which GPUs there are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from runner.errors import UsageError
from runner.pools import Gpu

_GPU_QUERY = "index,uuid,name,memory.total"
_MIB_PER_GIB = 1024
_TIMEOUT_S = 20.0


def describe_device(gpus: Sequence[Gpu] | None = None) -> str:
    """Name GPUs as the driver does, or count the CPU threads this process may use.

    Args:
        gpus: All of the host's when absent.

    Returns:
        Such as `NVIDIA H100 80GB HBM3 (80 GiB)`, `2 x NVIDIA L4 (22 GiB)` or `cpu (2 threads)`.
    """
    names = [f"{gpu.name} ({_memory(gpu)})" for gpu in (list_gpus() if gpus is None else gpus)]
    if not names:
        return f"cpu ({len(os.sched_getaffinity(0))} threads)"
    return ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )


def list_gpus() -> tuple[Gpu, ...]:
    """Ask the driver for this host's GPUs; none without its tool, its driver or a device."""
    answer = ask_driver("gpu", _GPU_QUERY)
    return () if answer is None else parse_gpus(answer)


def parse_gpus(answer: str) -> tuple[Gpu, ...]:
    """Read what `nvidia-smi --query-gpu` says, one line a GPU; other lines are left out. Pure."""
    gpus = []
    for line in answer.splitlines():
        head, _, memory = line.rpartition(",")
        index, uuid, name = (*(field.strip() for field in head.split(",", 2)), "", "")[:3]
        if index.isdecimal() and uuid:
            memory_mib = int(memory) if memory.strip().isdecimal() else None
            gpus.append(Gpu(index=int(index), uuid=uuid, name=name, memory_mib=memory_mib))
    return tuple(gpus)


def choose_gpus(wanted: str, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Find the GPUs that somebody names. Pure.

    Args:
        wanted: Numbers as in `nvidia-smi`, or the beginnings of ids, separated by commas. Empty or `-1`: none.
        gpus: The host's.

    Raises:
        UsageError: It names something that is not there, or one GPU twice.
    """
    words = [] if wanted.strip() in {"", "-1"} else [word.strip() for word in wanted.split(",")]
    chosen, problems = [], []
    for word in words:
        named = [gpu for gpu in gpus if word == str(gpu.index) or (word[:4] == "GPU-" and gpu.uuid.startswith(word))]
        if word.startswith("MIG-"):
            named = [Gpu(index=None, uuid=word, name="part of a GPU")]
        if len(named) != 1:
            problems.append(f"there is {'no' if not named else 'more than one'} GPU {word!r}")
        elif named[0] in chosen:
            problems.append(f"{word!r} is named twice")
        else:
            chosen.append(named[0])
    if problems:
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus) or "none"
        raise UsageError(
            f"{wanted!r} does not name devices: {'; '.join(problems)}.",
            hint=f"The GPUs of this host, as `nvidia-smi` numbers them: {there}."
            + ("" if gpus else " Without GPUs a worker needs no --devices; any number of them share the cores."),
        )
    return tuple(chosen)


def ask_driver(subject: str, fields: str) -> str | None:
    """Ask `nvidia-smi`.

    Args:
        subject: `gpu` or `compute-apps`.
        fields: Which of its fields, separated by commas.

    Returns:
        One line of comma-separated values for each, without units; None where nobody answers.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = (f"--query-{subject}={fields}", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run([program, *query], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    # A machine with the tool but without a driver or a device fails here.
    return answer.stdout if answer.returncode == 0 else None


def _memory(gpu: Gpu) -> str:
    return "memory unknown" if gpu.memory_mib is None else f"{gpu.memory_mib / _MIB_PER_GIB:.0f} GiB"
