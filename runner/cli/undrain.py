"""`undrain HOST`: a host takes jobs again after a `drain`."""

from __future__ import annotations

import argparse

from runner.cli.jobs_store import jobs_store
from runner.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("host", metavar="HOST", help="a drained host")


def run(arguments: argparse.Namespace) -> int:
    """Undrain the host."""
    with jobs_store() as store:
        drained = store.drained()
        if arguments.host not in drained:
            hint = f"Drained are {', '.join(drained)}." if drained else "No host is."
            raise UsageError(f"Host {arguments.host!r} is not drained.", hint=hint)
        store.undrain(arguments.host)
    print(f"Host {arguments.host} takes jobs again within seconds.")
    return 0
