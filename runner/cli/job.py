"""`job JOB`: where one job stands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from runner.cli.jobs_store import jobs_store
from runner.console import printable
from runner.job_names import find_job
from runner.jobs import JobRecord, why_none_takes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("job", metavar="JOB", help="a job's id, the start of one, or a project's name")


def run(arguments: argparse.Namespace) -> int:
    """Print what the record says."""
    with jobs_store() as store:
        job = find_job(store, arguments.job)
        position = store.position(job.id)
        kept = None if position is None else why_none_takes(job.spec.project.compute, store.workers(job.pool))
    for name, value in _facts(job, position, kept):
        print(printable(f"{name:<11} {value}"))
    return 0


def _facts(job: JobRecord, position: int | None, kept: str | None) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "state", str(job.state) if position is None else f"{job.state}, position {position}"
    if kept is not None:
        yield "waits", kept
    yield "pool", f"{job.pool}, priority {job.priority}"
    yield "submitted", f"{job.submitted_at:%Y-%m-%d %H:%M} UTC by {job.submitted_by}"
    if job.spec.overrides:
        yield "changed", ", ".join(f"{path}={text}" for path, text in sorted(job.spec.overrides.items()))
    if job.retry_of is not None:
        yield "retry of", f"{job.retry_of}, {'from its newest checkpoint' if job.resume else 'from the beginning'}"
    if job.host is not None:
        yield "host", f"{job.host}, worker {job.worker}, attempt {job.attempt}"
    if job.phase is not None:
        yield "phase", str(job.phase)
    for lost in job.lost_hosts:
        where = f"in phase {lost.phase}" if lost.phase is not None else "before its first phase"
        yield "lost host", f"{lost.host} {where}{', which has come back' if lost.returned else ''}"
    if job.checkpoint is not None:
        yield "checkpoint", f"step {job.checkpoint_step}, {job.checkpoint}"
    if job.finished_at is not None:
        yield "finished", f"{job.finished_at:%Y-%m-%d %H:%M} UTC"
    if job.summary is not None:
        yield "loss", f"{job.summary.loss_first:.4g} → {job.summary.loss_last:.4g}"
    if job.adapter_path is not None:
        yield "adapter", job.adapter_path
    if job.error_code is not None:
        yield job.error_code, job.error_message or ""
    if job.error_hint is not None:
        yield "what to do", job.error_hint
