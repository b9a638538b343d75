"""Puts right what got lost: attempts of dead hosts and tickets that never arrived; removes jobs that ended long ago.

Any process may run it, several at once: every step of it is idempotent, and a ticket too many does no harm. Two hundred
workers cost Redis no more than one all the same, because they take turns.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from dramatiq.brokers.redis import RedisBroker

from runner.errors import UnavailableError
from runner.jobs import JobRecord
from runner.queue import issue_ticket, sweep, tickets_waiting
from runner.store import Store

_log = logging.getLogger(__name__)

MAX_INTERVAL_S = 10.0
MOST_TICKETS = 1000
"""Tickets issued for a pool in one pass: more than workers that could take them before the next."""
FORGET_AT_ONCE = 100
"""Jobs removed in one step of Redis, which answers nobody meanwhile."""
MOST_FORGOTTEN = 10_000
"""Jobs removed in one go: more than a large fleet ends between two."""
CLEAN_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one pass put right."""

    expired: tuple[JobRecord, ...]
    """Jobs whose host went silent: queued again, cancelled where somebody had asked for it, or failed where it is the
    job that loses its hosts (`StoreUpkeep.expire_leases`)."""
    tickets: dict[str, int]
    """Tickets issued, by pool; a pool that lacked none is not in it."""


def reconcile(store: Store, broker: RedisBroker) -> Reconciliation:
    """Look once.

    After a restart, a failover or an outage of Redis nobody is called dead for one lease period: while it was away
    nobody could renew. The first pass on a new server waits as well.

    Raises:
        UnavailableError: Redis does not answer.
    """
    expired = tuple(store.expire_leases()) if store.settled_s() >= store.lease_s else ()
    for job in expired:
        _log.warning("Job %s lost its host %s and is %s.", job.id, job.host, job.state)
    tickets = {}
    for pool, claimable in store.claimable().items():
        missing = min(claimable - tickets_waiting(broker, pool), MOST_TICKETS) if claimable else 0
        if missing > 0:
            tickets[pool] = missing
            for _ in range(missing):
                issue_ticket(broker, pool)
    return Reconciliation(expired, tickets)


def clean(store: Store, broker: RedisBroker) -> int:
    """Remove what has been kept for long enough: jobs that ended long ago, and what dead workers left at Dramatiq.

    Returns:
        How many jobs were removed; at most `MOST_FORGOTTEN`.

    Raises:
        UnavailableError: Redis does not answer.
    """
    sweep(broker, store.pools())
    forgotten = 0
    while forgotten < MOST_FORGOTTEN:
        removed = store.forget(FORGET_AT_ONCE)
        forgotten += removed
        if removed < FORGET_AT_ONCE:
            break
    return forgotten


def look_every_s(lease_s: float) -> float:
    """Seconds between two looks of a reconciler, or two announcements of a worker: thrice a lease at least."""
    return min(MAX_INTERVAL_S, lease_s / 3)


class Reconciler(threading.Thread):
    """Looks again and again until told to stop; outlives a Redis that is away.

    Where several do, one of them looks for all: whoever comes first after half an interval. Half, because `settled_s`
    has to be asked more often than two times in a lease also when the one who looked last has just died.

    Args:
        store: Shared with others or its own.
        broker: As above.
        interval_s: Seconds between two passes; `look_every_s` of the store's leases when absent.
    """

    def __init__(self, store: Store, broker: RedisBroker, *, interval_s: float | None = None) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._store = store
        self._broker = broker
        self._interval_s = look_every_s(store.lease_s) if interval_s is None else interval_s
        self._stop_event = threading.Event()

    def run(self) -> None:
        """Look at once, then every `interval_s`."""
        clean_at = time.monotonic()
        while True:
            try:
                if self._store.take_turn("reconciler", self._interval_s / 2):
                    reconcile(self._store, self._broker)
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + CLEAN_EVERY_S
                    if self._store.take_turn("cleaner", CLEAN_EVERY_S / 2):
                        clean(self._store, self._broker)
            except UnavailableError as error:
                _log.warning("%s Looking again in %g s.", error, self._interval_s)
            except Exception:  # noqa: BLE001  # see below
                # Whatever somebody has planted in Redis: without this thread no lost job would ever come back.
                _log.exception("A pass of the reconciler failed. Looking again in %g s.", self._interval_s)
            if self._stop_event.wait(self._interval_s):
                return

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread and wait for it."""
        self._stop_event.set()
        self.join(timeout_s)
