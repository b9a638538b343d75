"""What there is to measure of all jobs at one moment: queues, attempts, and sums of what has happened. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ActiveJob:
    """An attempt under way."""

    id: str
    state: str
    """`running` or `stopping`."""
    host: str
    lease_left_s: float | None
    """Seconds until its lease runs out; less than 0 for one that has, None without a lease."""
    tokens_per_s: float | None
    """Input tokens a second by the newest measurement of this very attempt; None before its first, as all below."""
    peak_bytes: int | None
    """Most memory that its training process has held: on a GPU of the GPU's, else of the host's."""
    step: int | None
    total_steps: int | None


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """One pool."""

    queued: int
    oldest_queued_s: float | None
    """Seconds since the submission of the queued job that was submitted first; None where none waits."""
    active: tuple[ActiveJob, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """What `Figures.totals` counts: events that moved a job."""

    pool: str
    kind: str
    """Kind of the event, such as `job_failed`."""
    detail: str
    """Its error code or reason; `again` for a claim that is not a job's first; else empty."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All pools at one moment, by Redis' clock."""

    pools: dict[str, PoolFigures]
    totals: dict[Total, int]
    """How often each has happened since Redis began to count, jobs that are forgotten included."""


def read_figures(reply: Any) -> Figures:
    """Build them from what `lua/figures.lua` answers."""
    now, totals, pools = reply
    return Figures(
        pools={pool: _pool(int(now), queued, oldest, active) for pool, queued, oldest, active in pools},
        totals={_total(name): int(count) for name, count in zip(totals[::2], totals[1::2], strict=True)},
    )


def _pool(now: int, queued: int, oldest: str, active: list[list[str]]) -> PoolFigures:
    return PoolFigures(
        queued=int(queued),
        oldest_queued_s=(now - int(oldest)) / 1e6 if oldest else None,
        active=tuple(_active(now, *row) for row in active),
    )


def _active(now: int, job: str, state: str, host: str, *more: str) -> ActiveJob:
    attempt, lease, newest = more
    # Not read as an event of ours: a worker of a newer version may say more in it.
    stored = json.loads(newest) if newest else {}
    event = stored["event"] if stored.get("attempt") == int(attempt) else {}
    return ActiveJob(
        id=job,
        state=state,
        host=host,
        lease_left_s=(int(lease) - now) / 1e6 if lease else None,
        tokens_per_s=float(event["tokens_per_s"]) if event else None,
        peak_bytes=event.get("peak_bytes"),
        step=event.get("step"),
        total_steps=event.get("total_steps"),
    )


def _total(name: str) -> Total:
    pool, kind, detail = name.split(" ", 2)
    return Total(pool, kind, detail)
