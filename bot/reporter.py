"""Turns the stream of events into threads: one reporter over all bots, several threads at a time.

A thread that waits for Slack keeps no other one waiting: it goes to the side with the time at which it wants to be
called again.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from slack_sdk import WebClient

from bot.delivery import DeliveryStore
from bot.job_thread import EDIT_EVERY_S, JobThread
from bot.outbox import Outbox
from runner.errors import UnavailableError
from runner.jobs import FINAL_STATES
from runner.logs import logging_about
from runner.store import Store

HOLD_S = 15.0
"""Seconds after which another bot may take over from one that died."""
CALL_S = 8
"""Longest that one call to Slack takes, in seconds; nothing is sent when the hold could end in the meantime."""
LOOK_EVERY_S = 0.5
"""Longest wait for news before looking at the clock."""
REMEMBERED = timedelta(days=30)
"""How far back an ended job may lie whose thread is still completed after the bot was away."""
AFTER_A_BUG_S = 30.0
TIDY_EVERY_S = 3600.0
"""Seconds between two looks for threads of jobs that are no more."""

_log = logging.getLogger(__name__)


class ReporterLease:
    """The right to post, held in Redis by one bot at a time."""

    def __init__(self, memory: DeliveryStore, hold_s: float) -> None:
        self._memory = memory
        self._hold_s = hold_s
        self._owner = uuid4().hex
        self._held_until = float("-inf")
        self._renewed_at = float("-inf")

    def hold(self) -> bool:
        """Take or renew it; asks Redis only when a good part of it is over.

        Raises:
            UnavailableError: Redis is away.
        """
        now = time.monotonic()
        if self.is_held() and now < self._renewed_at + self._hold_s / 6:
            return True
        if self._memory.hold(self._owner, self._hold_s):
            # From before the call: the hold began no earlier than that.
            self._held_until, self._renewed_at = now + self._hold_s, now
            return True
        self._held_until = float("-inf")
        return False

    def is_held(self) -> bool:
        """Whether it is ours by our own clock."""
        return time.monotonic() < self._held_until

    def covers_a_call(self) -> bool:
        """Whether it stays ours for as long as a call to Slack may take."""
        return time.monotonic() + min(CALL_S, self._hold_s / 2) < self._held_until

    def release(self) -> None:
        """Let another bot take over at once."""
        if self.is_held():
            self._held_until = float("-inf")
            self._memory.release(self._owner)


@dataclass(slots=True)
class _Place:
    """A thread and when it is called next."""

    thread: JobThread
    running: bool = False
    again: bool = False
    due_at: float | None = None


class Reporter:
    """Posts and edits every job's thread while it holds the lease.

    Args:
        store: Where events come from.
        client: For posting; without retry handlers, with a timeout of `CALL_S`.
        memory: What has been said.
        threads: Jobs that are worked on at the same time.
        hold_s: Seconds that the lease holds.
        edit_every_s: Shortest pause between two edits of the same message.
    """

    def __init__(
        self,
        store: Store,
        client: WebClient,
        memory: DeliveryStore,
        *,
        threads: int = 4,
        hold_s: float = HOLD_S,
        edit_every_s: float = EDIT_EVERY_S,
    ) -> None:
        self._store = store
        self._memory = memory
        self._lease = ReporterLease(memory, hold_s)
        self._outbox = Outbox(client, memory, may_post=self._lease.covers_a_call)
        self._edit_every_s = edit_every_s
        self._threads = threads
        self._places: dict[str, _Place] = {}
        self._tidy_at = time.monotonic()
        self._changed = threading.Condition()

    def run(self, stop: threading.Event) -> None:
        """Report until `stop` is set; then finish the calls under way and let another bot take over."""
        cursor: str | None = None
        away = False
        with ThreadPoolExecutor(self._threads, thread_name_prefix="thread") as pool:
            while not stop.is_set():
                try:
                    cursor = self._look(cursor, pool, stop)
                except UnavailableError as error:
                    if not away:
                        _log.warning("%s Reporting goes on when it answers.", error.message)
                    away = True
                    stop.wait(1.0)
                else:
                    if away:
                        _log.info("Redis answers again.")
                    away = False
            self._wait_until_idle()
        try:
            self._lease.release()
        except UnavailableError:
            _log.info("Redis is away; another bot can take over in %g s.", HOLD_S)

    def _look(self, cursor: str | None, pool: ThreadPoolExecutor, stop: threading.Event) -> str | None:
        if not self._lease.hold():
            self._forget()
            stop.wait(LOOK_EVERY_S)
            return None
        if cursor is None:
            # The cursor first: what happens in between is then told by both.
            cursor = self._store.latest_news()
            news = self._memory.not_done(self._store.active_or_recent(datetime.now(UTC) - REMEMBERED))
            self._tidy_at = time.monotonic()
        else:
            cursor, news = self._store.feed(cursor, round(self._wait_s() * 1000))
        for job_id in news:
            self._wake(job_id, pool)
        self._wake_due(pool)
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_EVERY_S
            self._tidy()
        return cursor

    def _tidy(self) -> None:
        """Let go of threads that nobody will ever finish: of jobs that are forgotten, and here of any that are over."""
        with self._changed:
            closed = {job_id for job_id, place in self._places.items() if place.thread.closed and not place.running}
        for job_id, state in self._store.states(sorted(closed | self._memory.open_threads())).items():
            if state is None:
                self._memory.forget(job_id)
            if job_id in closed and (state is None or state in FINAL_STATES):
                with self._changed:
                    self._places.pop(job_id, None)

    def _wait_s(self) -> float:
        with self._changed:
            dues = [place.due_at for place in self._places.values() if place.due_at is not None]
        soonest = min(dues, default=float("inf")) - time.monotonic()
        return min(max(soonest, 0.02), LOOK_EVERY_S)

    def _wake_due(self, pool: ThreadPoolExecutor) -> None:
        now = time.monotonic()
        with self._changed:
            due = [job_id for job_id, place in self._places.items() if place.due_at is not None and place.due_at <= now]
        for job_id in due:
            self._wake(job_id, pool)

    def _wake(self, job_id: str, pool: ThreadPoolExecutor) -> None:
        with self._changed:
            place = self._places.get(job_id)
            if place is None:
                thread = JobThread(
                    job_id,
                    store=self._store,
                    memory=self._memory,
                    outbox=self._outbox,
                    edit_every_s=self._edit_every_s,
                )
                place = self._places[job_id] = _Place(thread)
            place.due_at = None
            if place.running:
                place.again = True
                return
            place.running = True
        pool.submit(self._work, place)

    def _work(self, place: _Place) -> None:
        while True:
            with self._changed:
                place.again = False
            wait_s = self._call(place.thread)
            with self._changed:
                if place.again:
                    continue
                place.running = False
                place.due_at = None if wait_s is None else time.monotonic() + wait_s
                if place.thread.finished:
                    # One that Slack refuses stays, so that it is tried and logged once.
                    self._places.pop(place.thread.job_id, None)
                self._changed.notify_all()
                return

    def _call(self, thread: JobThread) -> float | None:
        try:
            with logging_about(thread.job_id):
                return thread.catch_up()
        except UnavailableError:
            # The main loop meets the same and tells of it once.
            return 1.0
        except Exception:  # noqa: BLE001 - a bug met in one thread must not end the reporting of all others
            _log.exception("%s: reporting failed; again in %g s.", thread.job_id, AFTER_A_BUG_S)
            return AFTER_A_BUG_S

    def _forget(self) -> None:
        """Another bot posts now: what this one thinks of the threads is getting old."""
        self._wait_until_idle()
        with self._changed:
            self._places.clear()

    def _wait_until_idle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not any(place.running for place in self._places.values()))
