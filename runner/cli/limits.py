"""`limits POOL [name=number …]`: show or set how many jobs may run and wait in a pool, for all and for one user.

Names: max_running, max_running_per_user, max_queued, max_queued_per_user; `name=none` takes a limit away.
"""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from runner.cli.jobs_store import jobs_store
from runner.errors import UsageError
from runner.pools import PoolLimits
from runner.store import Store
from runner.suggestions import nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("pool", metavar="POOL", help="whose limits")
    parser.add_argument("changes", metavar="name=number", nargs="*", help=f"{', '.join(PoolLimits.model_fields)}")


def run(arguments: argparse.Namespace) -> int:
    """Change what is asked for, then print all."""
    with jobs_store() as store:
        limits = store.limits(arguments.pool)
        if arguments.changes:
            limits = _changed(limits, arguments.changes)
            store.set_limits(arguments.pool, limits)
            _tell_when_unknown(store, arguments.pool)
    for name, most in limits:
        print(f"{name:<20} {'none' if most is None else most}")
    return 0


def _tell_when_unknown(store: Store, pool: str) -> None:
    """A pool may have limits before it has jobs; but mostly such a name is misspelled."""
    known = {*store.pools(), *(worker.pool for worker in store.workers())}
    if pool not in known:
        near = nearest(pool, known)
        question = f" Did you mean {near}? Then take these back with {pool} and name=none." if near else ""
        sys.stderr.write(f"Pool {pool!r} has had no job and no worker so far.{question}\n")


def _changed(limits: PoolLimits, changes: list[str]) -> PoolLimits:
    values = limits.model_dump()
    for change in changes:
        name, separator, number = change.partition("=")
        if name not in PoolLimits.model_fields:
            near = nearest(name, PoolLimits.model_fields)
            hint = f"Did you mean {near}?" if near else f"There are {', '.join(PoolLimits.model_fields)}."
            raise UsageError(f"There is no limit {name!r}.", hint=hint)
        if not separator:
            raise UsageError(f"{change!r} is not name=number.", hint=f"Write it like {name}=4, or {name}=none.")
        values[name] = None if number == "none" else number
    try:
        return PoolLimits.model_validate(values)
    except ValidationError as error:
        names = ", ".join(str(one["loc"][0]) for one in error.errors())
        raise UsageError(
            f"{names}: not a whole number of jobs, 1 or more.", hint="`none` takes a limit away."
        ) from None
