"""`unfreeze`: jobs start again after a `freeze`."""

from __future__ import annotations

import argparse

from runner.cli.jobs_store import jobs_store


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: it has none."""


def run(_: argparse.Namespace) -> int:
    """Unfreeze, and say what had been frozen."""
    with jobs_store() as store:
        former = store.frozen()
        store.unfreeze()
        waiting = sum(store.queue_lengths().values())
    if former is None:
        print("Nothing was frozen.")
        return 0
    print(
        f"Jobs start again within seconds, {waiting} wait. Frozen by {former.by} since {former.at:%Y-%m-%d %H:%M} UTC:"
    )
    print(f"  {former.reason}")
    return 0
