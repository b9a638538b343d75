"""`logs JOB [--lines N]`: the end of what a job's last attempt has printed, on the host where it ran."""

from __future__ import annotations

import argparse
from collections import deque

from runner.cli.jobs_store import jobs_store
from runner.console import printable
from runner.errors import UnavailableError
from runner.job_names import find_job
from runner.redaction import redact
from runner.run_directory import RunDirectory
from runner.settings import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("job", metavar="JOB", help="a job's id, the start of one, or a project's name")
    parser.add_argument("--lines", type=int, default=50, help="lines shown, default: 50")


def run(arguments: argparse.Namespace) -> int:
    """Print the last lines of the newest train.log."""
    with jobs_store() as store:
        job = find_job(store, arguments.job)
    job_dir = load_settings().output_root / job.spec.project.output_directory / job.id
    logs = [RunDirectory(attempt).log_path for attempt in job_dir.glob("attempt-*")]
    newest = max((log for log in logs if log.is_file()), key=lambda log: log.stat().st_mtime, default=None)
    if newest is None:
        where = f"Ask on host {job.host}, where it ran last." if job.host is not None else "It has not run yet."
        raise UnavailableError(f"There is no log of job {job.id} in {job_dir}.", hint=where, code="no-log")
    with newest.open(encoding="utf-8", errors="replace") as file:
        shown = redact("".join(deque(file, maxlen=max(1, arguments.lines))))
    for line in shown.splitlines():
        print(printable(line))
    return 0
