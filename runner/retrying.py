"""A job once more: the former's spec, with other settings where asked, and from its checkpoint where asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runner.errors import JobError, UsageError
from runner.jobs import JobRecord, JobState
from runner.projects import change_settings
from runner.resuming import spec_facts, tell_changes
from runner.spec import RunSpec


def retry_spec(projects_dir: Path, former: JobRecord, overrides: Mapping[str, str], *, resume: bool) -> RunSpec:
    """Resolve what a retry runs.

    Args:
        projects_dir: Where local data lie.
        former: The job that is repeated.
        overrides: `key=value` pairs as typed, on top of those of the former job.
        resume: Whether it goes on from the former job's newest checkpoint.

    Raises:
        JobError: The former job is not over (`job-not-finished`), or there is nothing to resume (`nothing-to-resume`).
        SpecError: The overrides do not fit, or data files have problems by now.
        UsageError: A resume with settings that change what is learned (`resume-mismatch`).
    """
    if not former.is_final:
        raise JobError(
            f"Job {former.id} is {former.state}; only a job that is over can be retried.",
            hint="Stop it first.",
            code="job-not-finished",
        )
    if resume and (former.state is JobState.SUCCEEDED or former.checkpoint_step is None):
        why = "has been trained to its end" if former.state is JobState.SUCCEEDED else "has written no checkpoint"
        hint = "Retry it without resuming; it then begins again."
        raise JobError(f"Job {former.id} {why}: there is nothing to resume.", hint=hint, code="nothing-to-resume")
    spec = change_settings(projects_dir, former.spec, overrides)
    if resume and (changes := tell_changes(spec_facts(former.spec), spec_facts(spec))):
        raise UsageError(
            f"A resumed run must learn the same: {'; '.join(changes)}.",
            hint="Leave these settings as they were, or retry it without resuming.",
            code="resume-mismatch",
        )
    return spec
