"""Pools and hosts: what operators decide about them, and the devices that workers have. Pure; no I/O."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from runner.reports import Record


class PoolLimits(Record):
    """How much of a pool may be taken; None where there is no limit."""

    max_running: int | None = Field(default=None, ge=1)
    """Jobs that run at once, whoever submitted them."""
    max_running_per_user: int | None = Field(default=None, ge=1)
    """Jobs of one submitter that run at once; his others wait behind everybody's."""
    max_queued: int | None = Field(default=None, ge=1)
    """Jobs that wait; further ones are refused."""
    max_queued_per_user: int | None = Field(default=None, ge=1)
    """Jobs of one submitter that wait; further ones are refused."""


class Freeze(Record):
    """Nothing new starts anywhere; running jobs go on."""

    reason: str
    by: str
    """Who froze it: a login name, or a Slack user id."""
    at: AwareDatetime


class Drain(Record):
    """A host takes no new job; what runs on it goes on."""

    host: str
    by: str
    at: AwareDatetime


class Obstacle(StrEnum):
    """What keeps one worker from the jobs of its pool while other workers may take them."""

    DRAINED = "drained"
    """Its host is drained."""
    UNFIT = "unfit"
    """Jobs wait, and none of them suits it: mostly its devices do not suffice."""
    CHECKING = "checking"
    """It has just started and tries itself out."""
    UNHEALTHY = "unhealthy"
    """Something on its host has to be mended first."""
    GPU_BUSY = "gpu-busy"
    """Somebody else uses its GPU."""


class Hindrance(Record):
    """An obstacle and what is known about it."""

    obstacle: Obstacle
    why: str
    """In sentences, with what to do where that is known."""


class Gpu(Record):
    """One GPU of a host, as the driver tells it."""

    index: int | None
    """Its number in `nvidia-smi`, which a reboot may change; None for a part of a GPU (MIG)."""
    uuid: str
    """`GPU-…`, its own for good; `MIG-…` for a part."""
    name: str
    """Such as `NVIDIA L4`."""
    memory_mib: int | None = None
    """All of its memory, None where the driver does not say."""

    @property
    def told(self) -> str:
        """Number, name and id, for people."""
        return f"GPU {self.index} ({self.name}, {self.uuid})" if self.index is not None else f"GPU {self.uuid}"
