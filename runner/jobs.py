"""A job: its states, the moves between them, and the record that the store keeps. Pure; no I/O."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from runner.pools import Gpu, Hindrance, Obstacle
from runner.reports import Phase, Record, RunSummary
from runner.spec import Compute, RunSpec

JOB_ID = r"^[a-z0-9][a-z0-9_-]{0,79}$"
"""It names a folder."""
Priority = Literal["low", "normal", "high"]
WorkerState = Literal["idle", "working", "draining", "drained", "checking", "unhealthy", "gpu-busy"]


_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def new_job_id(project: str) -> str:
    """Draw an id; whoever uses it makes sure that it is not taken."""
    return f"{project}-{''.join(secrets.choice(_BASE32) for _ in range(5))}"


class JobState(StrEnum):
    """Where a job stands. Only `store.py` moves one, each time in one atomic step with the event that tells of it."""

    AWAITING_APPROVAL = "awaiting_approval"
    """Submitted under a policy that wants a second person. In: the bot's submit. Out: the bot, to the queue or to its
    end. A crash of anything leaves it waiting."""
    QUEUED = "queued"
    """Waits in its pool. In: a submit of bot or shell; a worker that gives its attempt back; the reconciler, after a
    lost host. Out: a worker's claim, or a stop. A crash of anything leaves it queued; a lost ticket is issued again."""
    RUNNING = "running"
    """An attempt holds its lease. In: a worker's claim. Out: the attempt's end; its worker, which gives it back; a
    stop; or, after a crash that nobody was left to tell of, the next worker on the same device at once, or the
    reconciler once the lease has run out: they queue the job again, or fail it when it has lost `POISON_LOSSES` hosts
    in one place or `MOST_LOSSES` in all."""
    STOPPING = "stopping"
    """Somebody asked the running attempt to stop; its child writes a checkpoint and ends. In: a stop of bot or shell.
    Out: the attempt's end, whichever it is. After a crash the next worker on the same device, or the reconciler, ends
    the job as cancelled."""
    SUCCEEDED = "succeeded"
    """The verified adapter is published. In: the end of the attempt that holds the job. Final. After a
    crash between publishing and telling the job is queued again, and its next attempt tells what was published."""
    FAILED = "failed"
    """Ended by an error that a retry would meet again. In: the end of the attempt that holds the job, or the
    reconciler, see above. Final; `retry` makes a new job."""
    CANCELLED = "cancelled"
    """Ended because somebody asked. In: a stop of a job that does not run; the end of a stopping attempt; a stopping
    attempt that its worker gives back or the reconciler calls dead. Final; `retry` makes a new job."""


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.AWAITING_APPROVAL: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.STOPPING, JobState.SUCCEEDED, JobState.FAILED}),
    # A stop can come too late: what has already succeeded or failed is told as it is.
    JobState.STOPPING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""Every legal move. Anything else is a bug, and the store refuses it."""

FINAL_STATES = frozenset(state for state, following in TRANSITIONS.items() if not following)
ACTIVE_STATES = frozenset({JobState.RUNNING, JobState.STOPPING})


POISON_LOSSES = 2
"""A job fails when it has lost so many hosts in the same phase without a newer checkpoint in between."""
MOST_LOSSES = 20
"""Lost hosts cost a job nothing, up to here: whatever the phases were, it would go round for ever."""


class LostHost(Record):
    """An attempt whose lease ran out: its host died, was preempted or lost its network."""

    host: str
    phase: Phase | None = None
    """Where the attempt stood, None before it had told of any phase."""
    step: int = 0
    """Optimizer steps of the job's newest checkpoint then, 0 without one. The same step twice is no progress."""
    token: int
    """The attempt's fencing token."""
    returned: bool = False
    """The worker has been heard of since, so that it was the network that was lost: nothing of the job's doing."""


class JobRecord(Record):
    """What is known of a job: the snapshot it was submitted with and where it stands."""

    id: Annotated[str, Field(pattern=JOB_ID)]
    """`<project>-<five base-32 characters>`; short enough to type, unique for good because it names a folder."""
    spec: RunSpec
    """Resolved once, at submission; later edits of the project file do not touch it."""
    pool: str
    priority: Priority = "normal"
    submitted_by: str
    """Who asked: a Slack user id, or a login name from the shell."""
    submitted_at: AwareDatetime
    origin: dict[str, str] = Field(default_factory=dict)
    """Where to report, opaque to the runner: the bot keeps channel and message here."""
    retry_of: Annotated[str, Field(pattern=JOB_ID)] | None = None
    """Id of the job that this one repeats, with `spec.overrides` on top of its settings."""
    resume: bool = False
    """Whether it goes on from the newest checkpoint of `retry_of`."""
    state: JobState = JobState.QUEUED
    attempt: Annotated[int, Field(ge=0)] = 0
    """Attempts begun; 0 while it has never run."""
    host: str | None = None
    """Host of the current or last attempt."""
    worker: str | None = None
    """Worker of the current or last attempt."""
    started_at: AwareDatetime | None = None
    """When the first attempt was claimed."""
    finished_at: AwareDatetime | None = None
    stop_requested_by: str | None = None
    phase: Phase | None = None
    """Where the current or last attempt stands, None before it has told of any."""
    checkpoint: str | None = None
    """The newest complete checkpoint, on the host that wrote it."""
    checkpoint_step: int | None = None
    checkpoint_host: str | None = None
    """The host that wrote it."""
    lost_hosts: tuple[LostHost, ...] = ()
    """Every attempt whose host was lost, oldest first."""
    summary: RunSummary | None = None
    adapter_path: str | None = None
    """The published adapter, on `host`."""
    error_code: str | None = None
    error_message: str | None = None
    error_hint: str | None = None

    @property
    def project(self) -> str:
        """Name of the project it was started from."""
        return self.spec.project.name

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in FINAL_STATES


_STATES: dict[Obstacle, WorkerState] = {
    Obstacle.CHECKING: "checking",
    Obstacle.UNHEALTHY: "unhealthy",
    Obstacle.GPU_BUSY: "gpu-busy",
}
"""What keeps a worker from all jobs, of whatever pool and need, until its host has changed."""


class WorkerInfo(Record):
    """A worker as it announces itself; gone from the list when it stops renewing."""

    # What a newer worker adds must not keep an older process from seeing it.
    model_config = ConfigDict(extra="ignore")

    name: str
    """`<host>:<pid>` or what the operator chose; unique among live workers."""
    host: str
    pool: str
    device: str
    """Such as `NVIDIA H100 80GB` or `cpu (2 threads)`."""
    gpus: tuple[Gpu, ...] = ()
    """The GPUs that its jobs may use; none on a host that trains on its CPU."""
    stack: str
    """Nearest version stack, such as `current`."""
    started_at: AwareDatetime
    last_seen_at: AwareDatetime
    job_id: str | None = None
    """What it works on, None when idle."""
    hindrance: Hindrance | None = None
    """What keeps it from taking jobs, None when nothing does."""
    disk_free_bytes: int | None = None
    """Left under its output root, None where it cannot be reached."""
    memory_bytes: int | None = None
    """All memory of its host."""
    memory_free_bytes: int | None = None
    """What processes there may still take."""

    @property
    def gpu_memory_gib(self) -> float:
        """Memory of its smallest GPU, 0 where the driver does not say."""
        return min((gpu.memory_mib or 0 for gpu in self.gpus), default=0) / 1024

    def state(self, drained: Collection[str]) -> WorkerState:
        """What it does, in a word.

        Args:
            drained: Hosts that take no new jobs.
        """
        if self.job_id is not None:
            return "draining" if self.host in drained else "working"
        if self.hindrance is not None and self.hindrance.obstacle in _STATES:
            return _STATES[self.hindrance.obstacle]
        return "drained" if self.host in drained else "idle"

    def fits(self, compute: Compute) -> bool:
        """Whether its devices suffice for a job: the rule of `lua/shared/choice.lua`, where claims follow it."""
        wanted = compute.min_gpu_memory_gib or 0.0
        if not self.gpus:
            # There `gpus` are processes that share its cores.
            return not wanted
        return compute.gpus <= len(self.gpus) and wanted <= self.gpu_memory_gib


def why_none_takes(compute: Compute, workers: Collection[WorkerInfo]) -> str | None:
    """Say why none of the live workers of its pool takes a job; None where one does when its turn comes.

    Args:
        compute: What the job needs.
        workers: Those of its pool; where there are none at all, that is for others to say.
    """
    fitting = [worker for worker in workers if worker.fits(compute)]
    if workers and not fitting:
        least = f" with {compute.min_gpu_memory_gib:g} GiB of memory" if compute.min_gpu_memory_gib else ""
        each = f"{compute.gpus} GPUs{f'{least} each' if least else ''}" if compute.gpus > 1 else f"a GPU{least}"
        devices = ", ".join(sorted({worker.device for worker in workers}))
        return f"No live worker of pool {compute.pool} has what it needs, {each}. There are: {devices}."
    away = [worker for worker in fitting if worker.state(()) in {"unhealthy", "gpu-busy"}]
    if away and len(away) == len(fitting):
        told = "; ".join(f"{worker.name}: {worker.hindrance.why}" for worker in away if worker.hindrance is not None)
        return f"No worker of pool {compute.pool} can take jobs at present. {told}"
    return None
