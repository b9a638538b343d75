"""Puts right what got lost: attempts of dead hosts and tickets that never arrived; removes jobs that ended long ago.

Any process may run it, several at once: every step of it is idempotent, and a ticket too many does no harm.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from dramatiq.brokers.redis import RedisBroker

from runner.errors import UnavailableError
from runner.jobs import JobRecord
from runner.queue import issue_ticket, tickets_waiting
from runner.store import Store

_log = logging.getLogger(__name__)

MAX_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one pass put right."""

    expired: tuple[JobRecord, ...]
    """Jobs whose host went silent: queued again, cancelled where somebody had asked for it, or failed where it is the
    job that loses its hosts (`StoreUpkeep.expire_leases`)."""
    tickets: dict[str, int]
    """Tickets issued, by pool; a pool that lacked none is not in it."""
    forgotten: int
    """Finished jobs whose time in Redis was over; at most a hundred a pass."""


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
    aligned = store.align()
    if aligned:
        _log.warning("%d jobs of an older version of this software were put in order with the others.", aligned)
    tickets = {}
    for pool, claimable in store.claimable().items():
        missing = claimable - tickets_waiting(broker, pool)
        if missing > 0:
            tickets[pool] = missing
            for _ in range(missing):
                issue_ticket(broker, pool)
    return Reconciliation(expired, tickets, store.forget())


def look_every_s(lease_s: float) -> float:
    """Seconds between two looks of a reconciler, or two announcements of a worker: thrice a lease at least."""
    return min(MAX_INTERVAL_S, lease_s / 3)


class Reconciler(threading.Thread):
    """Looks again and again until told to stop; outlives a Redis that is away.

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
        while True:
            try:
                reconcile(self._store, self._broker)
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
