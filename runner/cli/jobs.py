"""`jobs [--limit N]`: the latest jobs, newest first, and what keeps new ones from starting."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from runner.cli.jobs_store import jobs_store
from runner.console import columns, duration_text, printable
from runner.jobs import JobRecord, JobState, why_none_takes

_HEADINGS = ("JOB", "STATE", "POOL", "BY", "SUBMITTED", "RESULT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--limit", type=int, default=20, help="jobs shown, default: 20")


def run(arguments: argparse.Namespace) -> int:
    """Print a table."""
    with jobs_store() as store:
        jobs, frozen, drained = store.jobs(max(1, arguments.limit)), store.frozen(), store.drained()
        workers = store.workers()
        positions = {job.id: store.position(job.id) for job in jobs if job.state is JobState.QUEUED}
    if frozen is not None:
        print(printable(f"Frozen by {frozen.by}, nothing new starts: {frozen.reason}"))
    for drain in drained.values():
        print(printable(f"Host {drain.host} takes no new jobs, drained by {drain.by}"))
    now = datetime.now(UTC)
    rows = [_HEADINGS, *(_row(job, positions.get(job.id), now) for job in jobs)]
    for line in columns(rows):
        print(printable(line))
    for job in jobs:
        own = [worker for worker in workers if worker.pool == job.pool]
        if job.id in positions and (kept := why_none_takes(job.spec.project.compute, own)) is not None:
            print(printable(f"⚠️ {job.id}: {kept}"))
    return 0


def _row(job: JobRecord, position: int | None, now: datetime) -> tuple[str, ...]:
    age = f"{duration_text(max(0.0, (now - job.submitted_at).total_seconds()))} ago"
    return (job.id, str(job.state), job.pool, job.submitted_by, age, _result(job, position))


def _result(job: JobRecord, position: int | None) -> str:
    if job.summary is not None:
        return f"loss {job.summary.loss_first:.4g} → {job.summary.loss_last:.4g}"
    if job.error_code is not None:
        return job.error_code
    if position is not None:
        return f"position {position}"
    return f"{job.phase or 'starting'} on {job.host}" if job.state is JobState.RUNNING else ""
