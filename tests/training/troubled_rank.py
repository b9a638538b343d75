"""Makes rank 1 of a training run out of memory at its second step, and hang later when it is started anew.

The second step may take a share of what the first one took; that is a limit of the kernel, so that a real allocation
fails. Python imports `sitecustomize` at a process's start, from where `trouble` is called.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import Any

SHARE = 0.75
"""Between the half that half of the rows take and the whole."""


def held(name: str) -> int:
    """Bytes, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def trouble(hanging_pass: int) -> None:
    """Prepare this process, if it is rank 1.

    Args:
        hanging_pass: The forward pass of the training that hangs, counted from the start anew.
    """
    if os.environ.get("RANK") != "1" or "runner.training" not in sys.orig_argv:
        return
    from torch import nn  # noqa: PLC0415  # other processes shall not load it
    from torch.nn.modules.module import register_module_forward_pre_hook  # noqa: PLC0415

    passes = 0
    before_first = 0

    def look(module: nn.Module, _arguments: Any) -> None:
        nonlocal passes, before_first
        if type(module).__name__ != "PeftModelForCausalLM" or not module.training:
            return
        passes += 1
        if "--rows-at-once" in sys.orig_argv:
            if passes == hanging_pass:
                _hang()
        elif passes == 1:
            before_first = held("VmSize")
        else:
            # Addresses and not resident pages: the limit counts what is allocated.
            limit = held("VmData") + int(SHARE * (held("VmPeak") - before_first))
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

    register_module_forward_pre_hook(look)


def _hang() -> None:
    ctypes.PyDLL(None).pause()  # keeps the interpreter's lock
