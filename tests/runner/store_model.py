"""What `runner.store` promises, as a few dictionaries: the model that `test_store_machine` compares it with.

It knows no Redis, no scores and no scripts. The order of claims is found by claiming one job after the other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from runner.event_lines import MEASUREMENTS
from runner.jobs import FINAL_STATES, MOST_LOSSES, POISON_LOSSES, JobState, Priority
from runner.pools import PoolLimits

RANKS: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True)
class Loss:
    """An attempt that was called dead."""

    host: str
    phase: str | None
    step: int
    token: int
    returned: bool = False


@dataclass
class ModelJob:
    """What is known of one job."""

    id: str
    pool: str
    who: str
    priority: Priority
    number: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    token: int | None = None
    """Of the attempt that holds it."""
    wish: str | None = None
    """Request id of the last claim."""
    host: str | None = None
    former_host: str | None = None
    phase: str | None = None
    step: int | None = None
    stop_by: str | None = None
    declined_by: set[str] = field(default_factory=set)
    """Hosts that cannot run it."""
    losses: list[Loss] = field(default_factory=list)
    writes: set[tuple[int, str]] = field(default_factory=set)
    """What its attempts have written, by token."""
    history: list[tuple[int, str]] = field(default_factory=list)
    """Attempt and kind of every event."""

    @property
    def active(self) -> bool:
        return self.state in {JobState.RUNNING, JobState.STOPPING}

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    def tell(self, kind: str) -> None:
        self.history.append((self.attempt, kind))

    @property
    def milestones(self) -> list[tuple[int, int, str]]:
        """Number, attempt and kind of every event that is never thinned out."""
        numbered = enumerate(self.history, 1)
        return [(number, attempt, kind) for number, (attempt, kind) in numbered if kind not in MEASUREMENTS]


@dataclass
class StoreModel:
    """All jobs, and who waits for what."""

    jobs: dict[str, ModelJob] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    """Job of every submit's request id."""
    wishes: dict[str, str] = field(default_factory=dict)
    """Job of every claim's request id that got one."""
    seats: dict[str, list[str]] = field(default_factory=dict)
    """Submitters with jobs in a pool, whoever came or was served longest ago first."""
    limits: dict[str, PoolLimits] = field(default_factory=dict)
    frozen: bool = False
    drained: set[str] = field(default_factory=set)
    submitted: int = 0
    greatest_token: int = 0

    # --- questions -----------------------------------------------------------------------------------------------

    def of_pool(self, pool: str, *states: JobState) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.pool == pool and job.state in states]

    def running(self, pool: str) -> Counter[str]:
        return Counter(job.who for job in self.of_pool(pool, JobState.RUNNING, JobState.STOPPING))

    def order(self, pool: str) -> list[ModelJob]:
        """The queued jobs in the order in which one claim after the other would take them, were they all allowed.

        Next is who may still run one, with the job of the highest priority, with the fewest running, by seat.
        """
        running, seats = self.running(pool), self.seats.get(pool, [])
        most = self._limits(pool).max_running_per_user or float("inf")
        waiting = sorted(self.of_pool(pool, JobState.QUEUED), key=lambda job: (RANKS[job.priority], job.number))
        order = []
        while waiting:
            first_of_each = {job.who: job for job in reversed(waiting)}

            def turn(job: ModelJob) -> tuple[bool, int, int, int]:
                has = running[job.who]
                return has >= most, RANKS[job.priority], has, seats.index(job.who)

            best = min(first_of_each.values(), key=turn)
            waiting.remove(best)
            running[best.who] += 1
            order.append(best)
        return order

    def claimable(self, pool: str) -> int:
        """How many claims in a row would find a job."""
        if self.frozen:
            return 0
        limits, running, count = self._limits(pool), self.running(pool), 0
        for job in self.order(pool):
            if running.total() >= (limits.max_running or float("inf")):
                break
            if running[job.who] >= (limits.max_running_per_user or float("inf")):
                break
            running[job.who] += 1
            count += 1
        return count

    def full(self, pool: str, who: str) -> bool:
        """Whether a further job of this submitter is refused."""
        limits, queued = self._limits(pool), self.of_pool(pool, JobState.QUEUED)
        own = [job for job in queued if job.who == who]
        return len(queued) >= (limits.max_queued or float("inf")) or len(own) >= (
            limits.max_queued_per_user or float("inf")
        )

    # --- moves ---------------------------------------------------------------------------------------------------

    def submit(self, job_id: str, pool: str, who: str, priority: Priority, request: str) -> None:
        self.submitted += 1
        job = ModelJob(job_id, pool, who, priority, self.submitted)
        self.jobs[job_id] = job
        self.requests[request] = job_id
        self._come(job)
        job.tell("job_queued")

    def next_claim(self, pool: str, host: str) -> ModelJob | None:
        """The job that a claim would get now: the first of all those that the host has not declined."""
        limits, running = self._limits(pool), self.running(pool)
        if self.frozen or host in self.drained or running.total() >= (limits.max_running or float("inf")):
            return None
        able = [job for job in self.order(pool) if host not in job.declined_by]
        first_of_each = {job.who: job for job in reversed(able)}
        free = [
            job for who, job in first_of_each.items() if running[who] < (limits.max_running_per_user or float("inf"))
        ]
        seats = self.seats.get(pool, [])
        return min(free, key=lambda job: (RANKS[job.priority], running[job.who], seats.index(job.who)), default=None)

    def claim(self, job: ModelJob, host: str, token: int, wish: str) -> None:
        job.former_host = job.host
        job.state, job.attempt, job.token, job.host, job.wish = JobState.RUNNING, job.attempt + 1, token, host, wish
        job.phase = None
        self.wishes[wish] = job.id
        self.greatest_token = token
        job.tell("job_claimed")

    def stop(self, job: ModelJob, by: str) -> None:
        if job.state is JobState.STOPPING:
            return
        job.stop_by = by
        if job.state is JobState.RUNNING:
            job.state = JobState.STOPPING
            job.tell("stop_requested")
        else:
            self.end(job, JobState.CANCELLED)

    def give_back(self, job: ModelJob) -> None:
        """The end of an attempt that is nobody's fault."""
        if job.state is JobState.STOPPING:
            self.end(job, JobState.CANCELLED)
            return
        job.state, job.token = JobState.QUEUED, None
        self._come(job)
        job.tell("job_requeued")

    def decline(self, job: ModelJob) -> None:
        """The end of an attempt that has not begun, because its host cannot run the job."""
        assert job.host is not None
        if job.state is JobState.STOPPING:
            self.give_back(job)
            return
        job.declined_by.add(job.host)
        job.state, job.token, job.attempt, job.host = JobState.QUEUED, None, job.attempt - 1, job.former_host
        job.tell("job_declined")

    def lose(self, job: ModelJob) -> None:
        """The end of an attempt whose lease has run out."""
        assert job.host is not None
        assert job.token is not None
        loss = Loss(job.host, job.phase, job.step or 0, job.token)
        job.losses.append(loss)
        in_one_place = [
            other for other in job.losses if not other.returned and (other.phase, other.step) == (loss.phase, loss.step)
        ]
        given_up = len(in_one_place) >= POISON_LOSSES or len(job.losses) >= MOST_LOSSES
        if given_up and job.state is JobState.RUNNING:
            self.end(job, JobState.FAILED)
        else:
            self.give_back(job)

    def hear_of(self, job: ModelJob, token: int) -> None:
        """A lost attempt asks for its lease: its host lives."""
        job.losses = [replace(loss, returned=True) if loss.token == token else loss for loss in job.losses]

    def end(self, job: ModelJob, state: JobState) -> None:
        was_active = job.active
        job.state, job.token = state, None
        seats = self.seats[job.pool]
        if was_active:
            seats.remove(job.who)
            seats.append(job.who)
        if not any(other.who == job.who and not other.final for other in self._others(job)):
            seats.remove(job.who)
        job.tell(f"job_{state}")

    def forget(self, job: ModelJob) -> None:
        del self.jobs[job.id]

    # --- inside --------------------------------------------------------------------------------------------------

    def _limits(self, pool: str) -> PoolLimits:
        return self.limits.get(pool, PoolLimits())

    def _others(self, job: ModelJob) -> list[ModelJob]:
        return [other for other in self.jobs.values() if other.pool == job.pool and other is not job]

    def _come(self, job: ModelJob) -> None:
        seats = self.seats.setdefault(job.pool, [])
        if job.who not in seats:
            seats.append(job.who)
