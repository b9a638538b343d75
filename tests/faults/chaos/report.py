"""The table of a run, as Markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from runner.event_lines import StoredEvent
from tests.faults.chaos.attack import Done
from tests.faults.fleet import Fleet
from tests.faults.invariants import Verdict

KILLS = "kill -9"


@dataclass(frozen=True)
class Row:
    """One kind of fault."""

    kind: str
    times: int
    recoveries: list[float]

    def __str__(self) -> str:
        if not self.recoveries:
            return f"| {self.kind} | {self.times} | | |"
        return f"| {self.kind} | {self.times} | {median(self.recoveries):.1f} | {max(self.recoveries):.1f} |"


def rows(fleet: Fleet, done: list[Done]) -> list[Row]:
    """Faults by kind, with the seconds from each to the moment when what it hit went on."""
    histories: dict[str, list[StoredEvent]] = {}
    times: Counter[str] = Counter()
    recoveries: dict[str, list[float]] = {}
    for fault in done:
        times[fault.kind] += 1
        found = recoveries.setdefault(fault.kind, [])
        if fault.recovery_s is not None:
            found.append(fault.recovery_s)
        for run in fault.hit:
            job_id, attempt = Path(run).parent.name, int(Path(run).name.removeprefix("attempt-"))
            events = histories.setdefault(job_id, fleet.store.events(job_id))
            found += _recovery(events, attempt, fault.at)
    return [Row(kind, times[kind], recoveries[kind]) for kind in sorted(times)]


def table(
    fleet: Fleet, verdict: Verdict, done: list[Done], *, seed: int, minutes: float, commit: str, threads: list[str]
) -> str:
    """The whole result."""
    states = Counter(str(job.state) for job in fleet.store.jobs(10**6))
    kills = sum(fault.kind.startswith(KILLS) for fault in done)
    attempts = sum(entry["what"] == "began" for entry in fleet.diary())
    results = {
        "kills": kills,
        "faults in all": len(done),
        "jobs": states.total(),
        "succeeded": states["succeeded"],
        "failed": states["failed"],
        "cancelled": states["cancelled"],
        "attempts": attempts,
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "healthy stopped": len(verdict.stopped),
        "histories wrong": len(verdict.disordered),
        "threads wrong": len(threads),
    }
    how = (
        f"`make chaos MINUTES={minutes:g} SEED={seed}` on commit {commit}: Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {len(fleet.hosts)} workers, leases of {fleet.lease_s:g} s."
    )
    lines = [
        how,
        "",
        "| fault | times | recovery, median s | worst s |",
        "|---|---|---|---|",
        *map(str, rows(fleet, done)),
        "",
        f"| {' | '.join(results)} |",
        f"|{'---|' * len(results)}",
        f"| {' | '.join(map(str, results.values()))} |",
    ]
    return "\n".join(lines) + "\n"


def _recovery(events: list[StoredEvent], attempt: int, at: float) -> list[float]:
    """Seconds until the next attempt of the job began, or until its end was told."""
    after = [
        stored.event.at.timestamp() - at
        for stored in events
        if (stored.attempt > attempt and stored.event.kind == "job_claimed")
        or stored.event.kind in {"job_failed", "job_cancelled", "job_succeeded"}
    ]
    return after[:1]
