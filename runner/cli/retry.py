"""`retry JOB [key=value …] [--resume]`: queue a job again that is over, with other settings or from its checkpoint."""

from __future__ import annotations

import argparse
from uuid import uuid4

from runner.cli.jobs_store import call_a_worker, jobs_at, login_name
from runner.cli.project import read_overrides
from runner.data_copies import with_data_copies
from runner.job_names import find_job
from runner.retrying import retry_spec
from runner.settings import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("job", metavar="JOB", help="a job's id, the start of one, or a project's name")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="change a setting of the former job")
    parser.add_argument("--resume", action="store_true", help="go on from its newest checkpoint")


def run(arguments: argparse.Namespace) -> int:
    """Check and queue the new job, and say where it stands."""
    settings = load_settings()
    overrides = read_overrides(arguments.overrides)
    with jobs_at() as (store, url):
        former = find_job(store, arguments.job)
        spec = retry_spec(settings.projects_dir, former, overrides, resume=arguments.resume)
        spec = with_data_copies(spec, settings.projects_dir)
        job = store.submit(
            spec,
            submitted_by=login_name(),
            # Its thread opens in the channel of the former one's.
            origin={"channel": former.origin["channel"]} if "channel" in former.origin else {},
            request_id=uuid4().hex,
            priority=former.priority,
            retry_of=former.id,
            resume=arguments.resume,
        )
        position = store.position(job.id)
        call_a_worker(url, job.id, job.pool)
    how = f", from its checkpoint of step {former.checkpoint_step}" if arguments.resume else ""
    print(f"Queued {job.id} in pool {job.pool}, a retry of {former.id}{how}.")
    if position is not None:
        print(f"Position {position}. `python -m runner job {job.id}` tells how it goes.")
    return 0
