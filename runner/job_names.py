"""Which job people mean: a full id, the start of one, or a project's name."""

from __future__ import annotations

from collections.abc import Iterable

from runner.errors import JobError
from runner.jobs import FINAL_STATES, JobRecord, JobState
from runner.store_reading import StoreReader

SEARCHED_JOBS = 500
"""Newest jobs among which an abbreviated id is looked for."""
LIVE_STATES = frozenset(JobState) - FINAL_STATES


def find_job(store: StoreReader, wanted: str) -> JobRecord:
    """The job that a full id, the start of one, or a project's name means; jobs that are not over come first.

    Raises:
        JobError: None, or several.
    """
    exact = store.find(wanted)
    if exact is not None:
        return exact
    live = store.jobs(SEARCHED_JOBS, LIVE_STATES)
    recent = store.jobs(SEARCHED_JOBS)
    for jobs in (live, recent):
        started = [job for job in jobs if job.id.startswith(wanted)]
        of_project = [job for job in jobs if job.project == wanted]
        for candidates in (of_project, started):
            if len(candidates) == 1 or (candidates and jobs is recent and candidates is of_project):
                # Of a project whose jobs are all over, the newest is meant.
                return candidates[0]
        if of_project or started:
            raise _ambiguous(wanted, of_project or started)
    # Tells that there is none, and which id comes near.
    return store.get(wanted)


def _ambiguous(wanted: str, jobs: Iterable[JobRecord]) -> JobError:
    ids = [job.id for job in jobs]
    shown = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")  # noqa: PLR2004 - enough to choose from
    return JobError(f"{wanted!r} can mean {len(ids)} jobs.", hint=f"Name one: {shown}.", code="job-ambiguous")
