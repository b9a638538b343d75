"""`freeze REASON`: nothing new starts in any pool until `unfreeze`; running jobs go on."""

from __future__ import annotations

import argparse

from runner.cli.jobs_store import jobs_store, login_name
from runner.jobs import ACTIVE_STATES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("reason", metavar="REASON", nargs="+", help="what people are told who wait meanwhile")


def run(arguments: argparse.Namespace) -> int:
    """Freeze, and say what that leaves running."""
    with jobs_store() as store:
        freeze = store.freeze(" ".join(arguments.reason), login_name())
        running, waiting = store.count(ACTIVE_STATES), sum(store.queue_lengths().values())
    print(f"Frozen: {freeze.reason}")
    print(f"Nothing new starts until `python -m runner unfreeze`. Running: {running}, waiting: {waiting}.")
    return 0
