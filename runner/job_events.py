"""What happens to a job, as small immutable records. No I/O.

The store appends each in the step that changes the job's state. With what happens in an attempt (`runner.events`) this
is the whole vocabulary between child, supervisor, store and bot.
"""

from __future__ import annotations

from typing import Literal

from runner.events import ChildEvent, Event
from runner.reports import Phase, RunSummary


class JobQueued(Event):
    """`job_queued`: accepted; `position` is 1 for the next to run."""

    kind: Literal["job_queued"] = "job_queued"
    position: int
    pool: str


class JobClaimed(Event):
    """`job_claimed`: a worker has taken it."""

    kind: Literal["job_claimed"] = "job_claimed"
    worker: str
    host: str
    device: str
    attempt: int
    """1 for the first."""


class JobRequeued(Event):
    """`job_requeued`: its attempt ended in `phase` through no fault of its own; it is back in its place."""

    kind: Literal["job_requeued"] = "job_requeued"
    reason: Literal["host-lost", "worker-stopped"]
    host: str
    phase: Phase | None = None
    step: int | None = None
    """Optimizer steps of its newest checkpoint, None while it has none."""


class JobDeclined(Event):
    """`job_declined`: the host that had claimed it cannot run it as asked; back in its place, no attempt spent."""

    kind: Literal["job_declined"] = "job_declined"
    reason: Literal["data-differs", "checkpoint-elsewhere"]
    host: str
    message: str
    """What is otherwise there, and what to do about it."""
    others: bool = True
    """Whether a live worker of its pool is on another host that has not declined it."""


class StopRequested(Event):
    """`stop_requested`: somebody asked a running job to stop."""

    kind: Literal["stop_requested"] = "stop_requested"
    by: str


class JobSucceeded(Event):
    """`job_succeeded`: the adapter is published."""

    kind: Literal["job_succeeded"] = "job_succeeded"
    summary: RunSummary
    adapter_path: str
    """The published folder on the host."""


class JobFailed(Event):
    """`job_failed`: over, without an adapter."""

    kind: Literal["job_failed"] = "job_failed"
    code: str
    message: str
    hint: str | None = None


class JobCancelled(Event):
    """`job_cancelled`: over, because somebody asked for it."""

    kind: Literal["job_cancelled"] = "job_cancelled"
    by: str
    step: int | None = None
    """Optimizer steps done, None when it never ran."""
    checkpoint: str | None = None
    """The last complete checkpoint on the host."""


FinalEvent = JobSucceeded | JobFailed | JobCancelled
"""The last event of a job; exactly one of them ends it."""

AnyEvent = ChildEvent | JobQueued | JobClaimed | JobRequeued | JobDeclined | StopRequested | FinalEvent
