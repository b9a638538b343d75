"""Keeps a fleet busy: requesters that submit, lose replies and ask again, and now and then stop what they started."""

from __future__ import annotations

import random
import threading
from uuid import uuid4

from runner.errors import UnavailableError
from runner.jobs import JobState, Priority
from runner.queue import issue_ticket
from runner.spec import RunSpec
from tests.faults.fleet import Fleet, scripted_spec

OUTSTANDING = 5
"""Jobs that wait or run at once: more than there are workers, so that there is a queue."""
LONGEST_STEPS = 200
STOPPED_SHARE = 0.05
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "normal", "high")


class Load(threading.Thread):
    """Submits until told to stop. What a requester was told of is in `fleet.accepted`.

    Args:
        fleet: Whose queue it fills.
        spec: What every job is made of.
        chance: Decides; of its own, so that its speed changes nobody else's draws.
    """

    def __init__(self, fleet: Fleet, spec: RunSpec, chance: random.Random) -> None:
        super().__init__(name="load")
        self._fleet = fleet
        self._spec = spec
        self._chance = chance
        self._store = fleet.requester
        self._over = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.is_set():
                try:
                    self._look()
                except UnavailableError:
                    self._over.wait(0.5)
                else:
                    self._over.wait(0.1)
        except BaseException as failure:  # noqa: BLE001 - told by whoever waits for this thread
            self.failure = failure

    def close(self) -> None:
        """Submit no more."""
        self._over.set()
        self.join()

    def _look(self) -> None:
        open_jobs = self._store.jobs(100, states=[JobState.QUEUED, JobState.RUNNING, JobState.STOPPING])
        running = [job for job in open_jobs if job.state is JobState.RUNNING and job.id in self._fleet.accepted]
        if running and self._chance.random() < STOPPED_SHARE / 20:
            self._fleet.stop(self._chance.choice(running).id)
        if len(open_jobs) < OUTSTANDING:
            self._submit()

    def _submit(self) -> None:
        spec = scripted_spec(self._spec, steps=self._chance.randint(10, LONGEST_STEPS))
        who, priority = self._chance.choice(("ann", "bob", "eve")), self._chance.choice(PRIORITIES)
        request_id = uuid4().hex
        while True:
            try:
                job = self._store.submit(spec, submitted_by=who, origin={}, request_id=request_id, priority=priority)
            except UnavailableError:
                # The requester does not know, and says the same once more.
                if self._over.wait(0.5):
                    return
            else:
                break
        self._fleet.accepted.append(job.id)
        issue_ticket(self._fleet.broker, job.pool)
