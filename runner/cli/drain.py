"""`drain HOST`: nothing new starts on a host until `undrain`; what runs on it goes on."""

from __future__ import annotations

import argparse

from runner.cli.jobs_store import jobs_store, login_name
from runner.suggestions import nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("host", metavar="HOST", help="as reports call it: QLORA_HOST, else the machine's name")


def run(arguments: argparse.Namespace) -> int:
    """Drain, and say what that leaves running there."""
    with jobs_store() as store:
        store.drain(arguments.host, login_name())
        workers = store.workers()
    here = [worker for worker in workers if worker.host == arguments.host]
    print(f"Host {arguments.host} takes no new jobs until `python -m runner undrain {arguments.host}`.")
    if not here:
        near = nearest(arguments.host, {worker.host for worker in workers})
        print(f"⚠️ No live worker is on a host of that name.{f' Did you mean {near}?' if near else ''}")
    for worker in here:
        print(f"  worker {worker.name}: {f'goes on with {worker.job_id}' if worker.job_id else 'idle'}")
    return 0
