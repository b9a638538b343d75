"""`stop JOB`: end a running job with a checkpoint, or take a queued one out."""

from __future__ import annotations

import argparse

from runner.cli.jobs_store import jobs_store, login_name
from runner.job_names import find_job
from runner.jobs import JobState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("job", metavar="JOB", help="a job's id, the start of one, or a project's name")


def run(arguments: argparse.Namespace) -> int:
    """Ask for the stop, and say what comes of it."""
    with jobs_store() as store:
        job = store.request_stop(find_job(store, arguments.job).id, login_name())
    if job.state is JobState.STOPPING:
        print(f"Job {job.id} writes a checkpoint on {job.host} and ends.")
    else:
        print(f"Job {job.id} is {job.state}.")
    return 0
