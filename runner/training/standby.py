"""The child's side of `runner.standby`: imports everything that a run needs, and waits for its job."""

from __future__ import annotations

import importlib
import json
import os
import select
import socket
import sys
from contextlib import suppress
from pathlib import Path

from runner.spec import RunSpec
from runner.standby import READY
from runner.training.stopping import StopSwitch

_LOOK_S = 1.0
MODULES = ("runner.training.pipeline", "transformers.integrations.bitsandbytes", "peft.tuners.lora.bnb")
"""What every run imports sooner or later: its own modules, which name most of theirs, and what those load lazily."""


def wait_for_job(control_fd: int, stop: StopSwitch) -> list[str] | None:
    """Import the training stack, say so, and wait.

    Args:
        control_fd: The socket to the worker.
        stop: Set by SIGTERM; a standby without a job then simply ends.

    Returns:
        The arguments of the child that this process is from now on, whose output then goes into its log; None when
        there will be no job.
    """
    with socket.socket(fileno=control_fd) as control:
        control.set_inheritable(False)
        _import_all()
        with suppress(OSError):  # The worker has ended just now, and we end with it.
            control.send(READY)
        while not select.select([control], [], [], _LOOK_S)[0]:
            if stop.is_set:
                return None
        job, descriptors, *_ = socket.recv_fds(control, 1 << 16, 1)
    if not job:
        return None
    [log] = descriptors
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.close(log)
    return [str(argument) for argument in json.loads(job)]


def needs_fresh_process(run_dir: Path) -> bool:
    """Whether the job is one for which this process would only launch others: then it must hold no device."""
    try:
        spec = RunSpec.model_validate_json((run_dir / "spec.json").read_bytes())
    except (OSError, ValueError):
        return False  # The run itself says what is wrong with it.
    return spec.project.compute.gpus > 1


def _import_all() -> None:
    for name in MODULES:
        importlib.import_module(name)
    import torch  # noqa: PLC0415  # loading it is what this function is for

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
