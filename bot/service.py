"""What the commands do, without Slack: a command in, an answer out. `bot.render.answers` puts it into words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bot.commands import Command, Help, Jobs, Projects, Start, Status, Stop, Versions
from bot.story import Story, tell_all
from runner.data_copies import with_data_copies
from runner.errors import UnavailableError, UsageError
from runner.job_names import find_job
from runner.jobs import ACTIVE_STATES, JobRecord, JobState, WorkerInfo, why_none_takes
from runner.pools import Drain, Freeze
from runner.projects import ProjectListing, list_projects, load_project
from runner.store import Store
from runner.versions import load_stacks

if TYPE_CHECKING:
    # At run time it is in memory by then; importing `bot.app` need not wait for it.
    from dramatiq.brokers.redis import RedisBroker

LISTED_JOBS = 15
SHOWN_QUEUED = 10
"""Queued jobs of a pool that `status` tells of, the next to run first."""
SHOWN_RUNNING = 500
"""Running jobs that `status` reads at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, where, and for which one time."""

    user: str
    """Slack user id."""
    channel: str
    """Channel in which a started job's thread is opened."""
    request_id: str
    """The same for every delivery of the same wish: a command delivered twice starts one job."""
    job_id: str | None = None
    """The job in whose thread it was asked, None outside of one."""


@dataclass(frozen=True, slots=True)
class Started:
    """Answer to `start`."""

    job: JobRecord
    position: int | None
    """1 for the next to run, None when a worker has taken it already."""
    pool_is_served: bool
    frozen: Freeze | None = None
    """Why nothing new starts at present, None while jobs do start."""
    kept: str | None = None
    """Why no live worker takes it, None where one does when its turn comes."""


@dataclass(frozen=True, slots=True)
class StopAnswer:
    """Answer to `stop`; the job is cancelled if it was waiting, else stopping."""

    job: JobRecord


@dataclass(frozen=True, slots=True)
class Queue:
    """One pool and what waits in it."""

    pool: str
    jobs: tuple[JobRecord, ...]
    """The front of its queue, the next to run first."""
    length: int
    """All that wait, the others included."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Answer to `status`."""

    running: tuple[Story, ...]
    queues: tuple[Queue, ...]
    """Pools with something waiting."""
    workers: tuple[WorkerInfo, ...]
    frozen: Freeze | None = None
    """Why nothing new starts at present, None while jobs do start."""
    drained: tuple[Drain, ...] = ()
    """Hosts that take no new jobs."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Answer to `status JOB`."""

    job: JobRecord
    story: Story
    position: int | None
    """Place in the queue, None when it does not wait."""


@dataclass(frozen=True, slots=True)
class JobList:
    """Answer to `jobs`, newest first."""

    jobs: tuple[JobRecord, ...]


@dataclass(frozen=True, slots=True)
class ProjectList:
    """Answer to `projects`."""

    projects: tuple[ProjectListing, ...]


@dataclass(frozen=True, slots=True)
class StackList:
    """Answer to `versions`."""

    stacks: Mapping[str, Mapping[str, str]]
    """Stack name to library to tested version."""
    workers: tuple[WorkerInfo, ...]


@dataclass(frozen=True, slots=True)
class HelpAnswer:
    """Answer to `help`."""


Answer = Started | StopAnswer | Overview | JobStatus | JobList | ProjectList | StackList | HelpAnswer


class Service:
    """Carries out commands. Safe to share between threads.

    Args:
        store: The jobs.
        broker: Where tickets go.
        projects_dir: The projects folder.
    """

    def __init__(self, store: Store, broker: RedisBroker, projects_dir: Path) -> None:
        self._store = store
        self._broker = broker
        self._projects_dir = projects_dir

    def answer(self, command: Command, request: Request) -> Answer:  # noqa: PLR0911 - one line a command
        """Carry out a command.

        Raises:
            UsageError: It names something that does not exist.
            SpecError: The project has problems; nothing was queued.
            JobError: There is no such job, several are meant, or it is over.
            PolicyError: The pool takes no more jobs at present.
            UnavailableError: Redis does not answer; nothing was queued unless it says so.
        """
        match command:
            case Start():
                return self.start(command, request)
            case Stop():
                return self.stop(command, request)
            case Status():
                return self._status(command, request)
            case Jobs():
                return JobList(tuple(self._store.jobs(LISTED_JOBS)))
            case Projects():
                return ProjectList(tuple(list_projects(self._projects_dir)))
            case Versions():
                return StackList(load_stacks(), tuple(self._store.workers()))
            case Help():
                return HelpAnswer()

    def start(self, command: Start, request: Request) -> Started:
        """Check a project and queue a job; a repeat of the same request gets the same job.

        Raises:
            UsageError: There is no such project.
            SpecError: It has problems.
            UnavailableError: Redis does not answer.
        """
        spec = load_project(self._projects_dir, command.project, command.overrides)
        spec = with_data_copies(spec, self._projects_dir)
        job = self._store.submit(
            spec,
            submitted_by=request.user,
            origin={"channel": request.channel},
            request_id=request.request_id,
        )
        from runner.queue import issue_ticket  # noqa: PLC0415 - see the top

        try:
            issue_ticket(self._broker, job.pool)
        except UnavailableError as error:
            # The job stands; the reconciler issues what is missing.
            _log.warning("%s: no ticket yet: %s", job.id, error.message)
        workers = self._store.workers(job.pool)
        kept = why_none_takes(job.spec.project.compute, workers)
        return Started(job, self._store.position(job.id), bool(workers), self._store.frozen(), kept)

    def stop(self, command: Stop, request: Request) -> StopAnswer:
        """Cancel a waiting job, or ask a running one to stop. Asking again changes nothing.

        Raises:
            JobError: There is no such job, several are meant, or it is over.
            UsageError: Asked without a job, outside a job's thread.
            UnavailableError: Redis does not answer.
        """
        wanted = command.job or request.job_id
        if wanted is None:
            raise UsageError("Which job?", hint="Name it, or mention me with `stop` inside its thread.")
        return StopAnswer(self._store.request_stop(find_job(self._store, wanted).id, request.user))

    def _status(self, command: Status, request: Request) -> Overview | JobStatus:
        wanted = command.job or request.job_id
        if wanted is not None:
            job = find_job(self._store, wanted)
            position = self._store.position(job.id) if job.state is JobState.QUEUED else None
            return JobStatus(job, self._story(job), position)
        running = self._store.jobs(SHOWN_RUNNING, ACTIVE_STATES)
        waiting = {pool: length for pool, length in self._store.queue_lengths().items() if length}
        return Overview(
            running=tuple(self._story(job) for job in running),
            queues=tuple(
                Queue(pool, tuple(self._store.queued(pool, SHOWN_QUEUED)), length) for pool, length in waiting.items()
            ),
            workers=tuple(self._store.workers()),
            frozen=self._store.frozen(),
            drained=tuple(self._store.drained().values()),
        )

    def _story(self, job: JobRecord) -> Story:
        return tell_all(job, self._store.events(job.id))
