"""Whether this host can take a job right now: disk, GPUs, and what the canary has found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from runner.canary import Canary
from runner.gpu_processes import who_uses
from runner.host_memory import available_bytes
from runner.pools import Gpu, Hindrance, Obstacle
from runner.settings import RunnerSettings

_GIB = 1 << 30


class Readiness:
    """What a worker asks before it claims.

    Args:
        settings: Where results go, and how much room they need.
        gpus: The worker's devices.
        canary: None where the host is not tried out.
    """

    def __init__(self, settings: RunnerSettings, gpus: Sequence[Gpu], canary: Canary | None = None) -> None:
        self._settings = settings
        self._gpus = tuple(gpus)
        self.canary = canary

    def hindrance(self) -> Hindrance | None:
        """What keeps this host from taking a job, None when nothing does. Asks the driver, so it may take a second."""
        return self._disk() or self._foreign_processes() or (self.canary.hindrance if self.canary is not None else None)

    def gpus_are_free(self) -> bool:
        """Whether nobody else is on the worker's GPUs."""
        return self._foreign_processes() is None

    def measurements(self) -> dict[str, int | None]:
        """Fields of `WorkerInfo` that change all the time."""
        try:
            disk = free_disk_bytes(self._settings.output_root)
        except OSError:
            disk = None  # `hindrance` says why.
        return {"disk_free_bytes": disk, "memory_free_bytes": available_bytes()}

    def _disk(self) -> Hindrance | None:
        root, least = self._settings.output_root, self._settings.min_free_disk_gib
        try:
            free = free_disk_bytes(root)
        except OSError as error:
            why = f"The output root {root} cannot be reached: {error.strerror}."
        else:
            if free >= least * _GIB:
                return None
            why = f"Only {free / _GIB:.2f} GiB are left under {root}, QLORA_MIN_FREE_DISK_GIB asks for {least:g}."
        return Hindrance(obstacle=Obstacle.UNHEALTHY, why=why)

    def _foreign_processes(self) -> Hindrance | None:
        used = who_uses(self._gpus)
        return None if used is None else Hindrance(obstacle=Obstacle.GPU_BUSY, why=used)


def free_disk_bytes(folder: Path) -> int:
    """Bytes left on the disk that a folder is or will be on.

    Raises:
        OSError: It cannot be reached.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def memory_bytes() -> int:
    """All memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
