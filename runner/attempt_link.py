"""One attempt's line to the store: its events out, its lease renewed, requests to stop in, while Redis comes and goes.

Two threads of its own, so that neither a slow store ever holds up the child, nor a long queue of events the lease.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from runner.errors import UnavailableError
from runner.events import ChildEvent
from runner.logs import in_this_context
from runner.store import Claim, LostLease, Store

logger = logging.getLogger(__name__)

RETRY_S = 0.5
"""Seconds between two tries while Redis is away."""
STOP_LATENCY_S = 1.0
"""The longest that a request to stop waits to be heard: renewals carry it, so there is one at least this often."""

Answer = TypeVar("Answer")


class StoreAway(Exception):  # noqa: N818 - nobody's error: the worker has to go and Redis has not come back
    """The store could not be told, and there is no more time; the lease runs out and the reconciler takes over."""


class AttemptLink:
    """Says and hears what belongs to one attempt; a context manager that starts and ends its threads.

    Args:
        store: Where the job is kept.
        claim: The right to write about this attempt.
    """

    def __init__(self, store: Store, claim: Claim) -> None:
        self.claim = claim
        self._store = store
        self._renew_every_s = min(store.lease_s / 3, STOP_LATENCY_S)
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._stop_requested_by: str | None = None
        self._failure: Exception | None = None
        self._unsent: deque[ChildEvent] = deque()
        self._something_to_send = threading.Event()
        # Daemons: a call that hangs in a dead network must not keep a stopping worker alive.
        self._threads = [
            threading.Thread(
                target=in_this_context(partial(self._guarded, work)), name=f"{claim.job.id} {name}", daemon=True
            )
            for name, work in (("lease", self._keep_lease), ("events", self._forward))
        ]

    @property
    def lost(self) -> bool:
        """Whether the job is no longer this attempt's."""
        return self._lost.is_set()

    @property
    def broken(self) -> bool:
        """Whether nothing that this attempt does can be told any more."""
        return self.lost or self._failure is not None

    @property
    def stop_requested_by(self) -> str | None:
        """Who asked the job to stop, None while nobody did."""
        return self._stop_requested_by

    def send(self, event: ChildEvent) -> None:
        """Take an event for the job's history; it gets there in order, as soon as Redis lets it."""
        self._unsent.append(event)
        self._something_to_send.set()

    def renew(self) -> None:
        """Ask the store whether the job is still ours and should go on.

        Raises:
            LostLease: It is not ours.
            UnavailableError: Redis does not answer.
        """
        renewal = self._store.renew(self.claim)
        if not renewal.owned:
            self._lost.set()
            self.raise_if_broken()
        self._stop_requested_by = renewal.stop_requested_by

    def insist(self, call: Callable[[], Answer], *, give_up: Callable[[], bool]) -> Answer:
        """Repeat a call to the store until Redis answers.

        Raises:
            LostLease: The job is no longer this attempt's.
            StoreAway: `give_up` said that there is no more time.
        """
        while True:
            self.raise_if_broken()
            try:
                return call()
            except UnavailableError as error:
                if give_up():
                    raise StoreAway(str(error)) from error
            self._closing.wait(RETRY_S)

    def drain(self, *, give_up: Callable[[], bool]) -> None:
        """Wait until every event has reached the store.

        Raises:
            LostLease: The job is no longer this attempt's.
            StoreAway: `give_up` said that there is no more time.
        """
        while self._unsent:
            self.raise_if_broken()
            if give_up():
                raise StoreAway(f"{len(self._unsent)} events of job {self.claim.job.id} did not reach Redis.")
            self._closing.wait(0.05)
        self.raise_if_broken()

    def raise_if_broken(self) -> None:
        """Pass on what ended one of the threads.

        Raises:
            LostLease: The job is no longer this attempt's.
            StoreAway: The store failed in a way that waiting does not cure.
        """
        if self.lost:
            raise LostLease(f"Attempt {self.claim.job.attempt} no longer holds job {self.claim.job.id}.")
        if self._failure is not None:
            raise StoreAway(f"The store failed: {self._failure}") from self._failure

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._something_to_send.set()
        for thread in self._threads:
            thread.join(2.0)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except LostLease:
            logger.warning("Job %s is no longer this attempt's.", self.claim.job.id)
            self._lost.set()
        except Exception as failure:
            logger.exception("The line of job %s to the store broke.", self.claim.job.id)
            self._failure = failure

    def _keep_lease(self) -> None:
        away = False
        while not self._closing.is_set():
            try:
                self.renew()
            except UnavailableError as error:
                if not away:
                    logger.warning(
                        "The lease of job %s cannot be renewed; its training goes on. %s", self.claim.job.id, error
                    )
                away = True
            else:
                away = False
            self._closing.wait(self._renew_every_s)

    def _forward(self) -> None:
        while True:
            if not self._unsent:
                if self._closing.is_set():
                    return
                self._something_to_send.wait(RETRY_S)
                self._something_to_send.clear()
                continue
            try:
                self._store.append(self.claim, self._unsent[0])
            except UnavailableError:
                if self._closing.wait(RETRY_S):
                    return
            else:
                self._unsent.popleft()
