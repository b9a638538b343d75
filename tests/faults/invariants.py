"""What has to hold after any fault, judged by the store, the files on disk and the children's own diary.

Every accepted job ends in exactly one final state. Its events have no gap and stand in order. Exactly one attempt of a
job that succeeded has published, and none of any other. No attempt has been stopped, and no job has failed, without
something having been done to it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.event_lines import StoredEvent
from runner.jobs import JobRecord, JobState
from tests.faults.fleet import Fault, Fleet

FINAL_KINDS = {"job_succeeded", "job_failed", "job_cancelled"}
READ_AT_ONCE = 10**6
TOLD_BY_A_RUN = {"phase_started", "training_started", "adapter_saved"}
"""Milestones of every scripted child that came to its end."""
LEFT_AT_LEAST = 40
"""Events of a job that was thinned when it ended: a twentieth of `QLORA_KEEP_EVENTS`, by kinds in whole numbers."""


@dataclass
class Verdict:
    """What was found wrong, in sentences."""

    lost: list[str] = field(default_factory=list)
    """Accepted jobs that are gone or have not ended."""
    doubled: list[str] = field(default_factory=list)
    """Ends, results or events that are there twice."""
    stopped: list[str] = field(default_factory=list)
    """Healthy attempts and jobs that were ended."""
    disordered: list[str] = field(default_factory=list)
    """Histories with gaps or out of order, and records that say something else."""

    @property
    def all(self) -> list[str]:
        return self.lost + self.doubled + self.stopped + self.disordered


def judge(fleet: Fleet) -> Verdict:
    """Look at everything that ever happened in a fleet whose jobs are all over."""
    verdict = Verdict()
    known = {job.id: job for job in fleet.store.jobs(READ_AT_ONCE)}
    attempts = _attempts(fleet)
    for job_id in fleet.accepted:
        job = known.get(job_id)
        if job is None or not job.is_final:
            verdict.lost.append(f"{job_id} is {job.state if job else 'gone'}")
    for job in known.values():
        events = fleet.store.events(job.id)
        _judge_history(job, events, verdict)
        _judge_results(fleet, job, events, attempts[job.id], verdict)
        _judge_end(fleet, job, attempts[job.id], verdict)
    verdict.stopped += [f"the worker of {name} ended by itself" for name in fleet.died()]
    verdict.stopped += fleet.found_dead
    for of_one_job in attempts.values():
        for attempt in of_one_job:
            _judge_attempt(fleet, attempt, verdict)
    return verdict


@dataclass
class Attempt:
    """What the diary says of one child."""

    run: Path
    worker: int
    pid: int
    began: float
    asked_at: float | None = None
    end: str | None = None
    """How it ended by itself; None where it never said."""
    ended_at: float = float("inf")
    """By its own word, else by when its worker began another: a worker has one at a time."""


def _attempts(fleet: Fleet) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    by_pid: dict[tuple[str, int], Attempt] = {}
    newest: dict[int, Attempt] = {}
    for entry in fleet.diary():
        key = entry["run"], entry["pid"]
        if entry["what"] == "began":
            run = Path(entry["run"])
            attempt = Attempt(run, entry["worker"], entry["pid"], entry["at"])
            former = newest.get(attempt.worker)
            if former is not None:
                former.ended_at = min(former.ended_at, attempt.began)
            by_pid[key] = newest[attempt.worker] = attempt
            found[run.parent.name].append(attempt)
        elif entry["what"] == "asked to stop":
            # A signal may come before the first line.
            if key in by_pid:
                by_pid[key].asked_at = entry["at"]
        else:
            by_pid[key].end, by_pid[key].ended_at = entry["what"], entry["at"]
    return found


def _judge_history(job: JobRecord, events: list[StoredEvent], verdict: Verdict) -> None:
    numbers = [stored.seq for stored in events]
    if numbers != sorted(set(numbers)):
        verdict.disordered.append(f"{job.id}: events {numbers}")
    if len({(stored.attempt, stored.event.model_dump_json()) for stored in events}) < len(events):
        verdict.doubled.append(f"{job.id}: an event stands in its history twice")
    kinds = [str(stored.event.kind) for stored in events]
    missing = set(range(1, numbers[-1] + 1)) - set(numbers)
    if missing and len(events) < LEFT_AT_LEAST:
        verdict.disordered.append(f"{job.id}: events {sorted(missing)} are missing")
    ends = [kind for kind in kinds if kind in FINAL_KINDS]
    if len(ends) > 1:
        verdict.doubled.append(f"{job.id} ended {len(ends)} times: {ends}")
    if job.is_final and ends != [f"job_{job.state}"]:
        verdict.disordered.append(f"{job.id} is {job.state}, its history says {ends}")
    if ends and kinds[-1] not in FINAL_KINDS:
        verdict.disordered.append(f"{job.id}: {kinds[-1]} after {ends[0]}")
    numbers_of_claims = [stored.attempt for stored in events if stored.event.kind == "job_claimed"]
    if numbers_of_claims != list(range(1, job.attempt + 1)):
        verdict.disordered.append(f"{job.id}: attempts {numbers_of_claims} of {job.attempt}")
    attempts = [stored.attempt for stored in events]
    if attempts != sorted(attempts):
        verdict.disordered.append(f"{job.id}: an attempt wrote after the next had begun: {attempts}")


def _judge_results(
    fleet: Fleet, job: JobRecord, events: list[StoredEvent], attempts: list[Attempt], verdict: Verdict
) -> None:
    """An attempt that said it has an adapter, and whose own folder has it no more, has published it."""
    published = [each.run for each in attempts if each.end == "succeeded" and not (each.run / "adapter").exists()]
    folder = fleet.outputs / job.spec.project.output_directory / job.id / "adapter"
    if len(published) > 1:
        verdict.doubled.append(f"{job.id} was published by {[run.name for run in published]}")
    if job.state is JobState.SUCCEEDED:
        if not published or not folder.is_dir():
            verdict.lost.append(f"{job.id} succeeded without a result")
        elif (folder / "adapter_model.safetensors").read_text() != published[-1].name:
            verdict.doubled.append(f"{job.id}: its result is not that of {published[-1].name}")
        elif published[-1].name == f"attempt-{job.attempt}":
            told = {str(stored.event.kind) for stored in events if stored.attempt == job.attempt}
            if not told >= TOLD_BY_A_RUN:
                verdict.lost.append(f"{job.id}: {sorted(TOLD_BY_A_RUN - told)} of {published[-1].name} are missing")
    elif published and not any(fault.job == job.id for fault in fleet.faults):
        verdict.doubled.append(f"{job.id} is {job.state} and was published by {[run.name for run in published]}")


def _judge_end(fleet: Fleet, job: JobRecord, attempts: list[Attempt], verdict: Verdict) -> None:
    if job.state is JobState.FAILED and not (attempts and _faults_of(fleet, attempts[-1])):
        verdict.stopped.append(f"{job.id} failed: {job.error_code}: {job.error_message}")
    if job.state is JobState.CANCELLED and not any(fault.job == job.id for fault in fleet.faults):
        verdict.stopped.append(f"{job.id} was cancelled, and nobody asked for it")


def _judge_attempt(fleet: Fleet, attempt: Attempt, verdict: Verdict) -> None:
    if attempt.end == "succeeded" or _faults_of(fleet, attempt):
        return
    what = "was asked to stop" if attempt.asked_at else "vanished"
    verdict.stopped.append(f"{attempt.run.parent.name}/{attempt.run.name} {what} (worker {attempt.worker})")


def _faults_of(fleet: Fleet, attempt: Attempt) -> list[Fault]:
    """What was done to an attempt while it ran, or to its job."""

    def meant(fault: Fault) -> bool:
        same: dict[str, Any] = {"worker": attempt.worker, "child": attempt.pid, "job": attempt.run.parent.name}
        return any(getattr(fault, name) == value for name, value in same.items())

    return [
        fault
        for fault in fleet.faults
        if meant(fault) and attempt.began <= fault.ended and fault.began <= attempt.ended_at
    ]
