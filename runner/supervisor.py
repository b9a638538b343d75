"""One attempt, from a claimed job to its end: child, events, stop, publication.

The store decides what is true. This module never ends a job on a guess: when Redis is away it trains on and waits, and
when the job has meanwhile become somebody else's it stops its child and publishes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from functools import partial

from runner.attempt_link import AttemptLink, StoreAway
from runner.child import Child, RunEnd, Spawn, spawn_training
from runner.data_copies import tell_differences
from runner.deaths import describe_hang
from runner.errors import JobError, QLoRAError
from runner.events import CheckpointChosen, RunFailed, RunInterrupted, RunSucceeded
from runner.host_limits import check_host_limits
from runner.job_events import FinalEvent, JobCancelled, JobDeclined, JobFailed, JobSucceeded
from runner.jobs import JobState
from runner.logs import logging_about
from runner.redaction import redact
from runner.run_directory import RunDirectory, adopt_checkpoint, checkpoint_step, create_attempt, visible_step
from runner.settings import RunnerSettings
from runner.silence import SilenceWatch
from runner.store import Claim, LostLease, Store

logger = logging.getLogger(__name__)

STACKS_S = 3.0
"""Seconds that processes which hang have for writing their stacks, which takes the kernel and no lock."""


class AttemptEnd(StrEnum):
    """What became of an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REQUEUED = "requeued"
    """The worker stops; the job is back in its place and costs nothing."""
    DECLINED = "declined"
    """This host cannot run the job as it was asked; it is back in its place and left to others."""
    LOST = "lost"
    """Another attempt holds the job, or nobody could be told: the reconciler takes care of it."""


def run_attempt(
    store: Store,
    claim: Claim,
    settings: RunnerSettings,
    *,
    stopping: threading.Event,
    spawn: Spawn | None = None,
) -> AttemptEnd:
    """Run the attempt that a claim stands for, and leave its job in the state that it earned.

    Args:
        store: Where the job is kept.
        claim: The right to write about this attempt.
        settings: Folders and patience of this host.
        stopping: Set when the worker has to go: the child writes a checkpoint and the job is queued again.
        spawn: Starts the child; the training itself unless a test puts something else in its place.
    """
    with logging_about(claim.job.id, claim.job.attempt):
        return _Attempt(store, claim, settings, stopping, spawn or spawn_training(settings)).run()


class _Ending:
    """Ends a child in stages, each when the one before has not helped in its time.

    Args:
        stages: Seconds to wait after the stage before, and what to do then.
    """

    def __init__(self, *stages: tuple[float, Callable[[], None]]) -> None:
        self._stages = deque(stages)
        self._since = time.monotonic()

    def go_on(self) -> None:
        """Do what it is time for."""
        while self._stages and time.monotonic() >= self._since + self._stages[0][0]:
            _, act = self._stages.popleft()
            self._since = time.monotonic()
            act()


class _Attempt:
    """The state of one attempt."""

    def __init__(
        self, store: Store, claim: Claim, settings: RunnerSettings, stopping: threading.Event, spawn: Spawn
    ) -> None:
        self._store = store
        self._claim = claim
        self._settings = settings
        self._stopping = stopping
        self._spawn = spawn
        self._link = AttemptLink(store, claim)
        self._give_up_at = float("inf")

    def run(self) -> AttemptEnd:
        job_id, attempt = self._claim.job.id, self._claim.job.attempt
        logger.info("Job %s, attempt %d begins.", job_id, attempt)
        with self._link:
            try:
                end = self._run()
            except LostLease:
                end = AttemptEnd.LOST
            except StoreAway as error:
                logger.warning("Job %s is left to the reconciler: %s", job_id, error)
                end = AttemptEnd.LOST
        logger.info("Job %s, attempt %d: %s.", job_id, attempt, end)
        return end

    def _run(self) -> AttemptEnd:
        job = self._claim.job
        try:
            check_host_limits(job.spec, self._settings)
            chosen = self._choose_checkpoint()
            if (end_here := self._left_to_others(chosen)) is not None:
                return end_here
            run_directory = create_attempt(self._settings.output_root, job.spec, job.id, job.attempt)
            published = run_directory.published_result()
            if published is not None:
                return self._tell(JobSucceeded.model_validate_json(published))
            if job.resume and job.retry_of is not None:
                adopt_checkpoint(run_directory, job.retry_of)
            if chosen is not None:
                self._link.send(chosen)
            # A worker that was put to sleep since its claim starts nothing that it would have to stop at once.
            self._link.insist(self._link.renew, give_up=self._out_of_time)
            with self._spawn(run_directory.path) as child:
                end = self._watch(child)
            self._link.drain(give_up=self._out_of_time)
            # Asked again and not remembered: between the child's end and now the job may have become somebody else's.
            self._link.insist(self._link.renew, give_up=self._out_of_time)
            if self._goes_back_to_the_queue(end):
                return self._requeue()
            final = self._final_event(end, run_directory)
        except (LostLease, StoreAway):
            raise
        except QLoRAError as error:
            final = JobFailed(code=error.code, message=error.message, hint=error.hint)
        except Exception as error:
            # A bug of ours. Queued again, the job would meet it again, on one host after the other.
            logger.exception("Job %s: the supervisor failed.", job.id)
            message = f"The worker failed: {type(error).__name__}: {error}"
            final = JobFailed(code="internal", message=redact(message), hint="Look into the worker's own log.")
        return self._tell(final)

    def _tell(self, final: FinalEvent) -> AttemptEnd:
        self._link.drain(give_up=self._out_of_time)
        self._link.insist(lambda: self._store.finish(self._claim, final), give_up=self._out_of_time)
        return _END_OF[type(final)]

    def _watch(self, child: Child) -> RunEnd:
        """Pass the child's events on, and end it in stages when somebody wants it to end, or when it hangs."""
        limits = self._settings.child
        silence = SilenceWatch(child, idle_s=limits.silence_s, busy_s=limits.busy_silence_s)
        ending: _Ending | None = None
        hung: str | None = None
        for event in child.events():
            if event is not None:
                silence.heard()
                self._link.send(event)
            if ending is None and self._should_end():
                ending = self._stop(child)
            if ending is None and (hung := silence.hung()) is not None:
                logger.warning("Job %s: the child %s; ending it.", self._claim.job.id, hung)
                ending = _Ending(
                    (0.0, partial(child.write_stacks, leader=False)),
                    (STACKS_S if child.has_helpers else 0.0, partial(child.write_stacks, leader=True)),
                    (STACKS_S, child.kill),
                )
            if ending is not None:
                ending.go_on()
        end = child.end()
        if hung is not None and isinstance(end, RunFailed):
            # How it died of our asking for its stacks says nothing.
            return describe_hang("training process", hung, child.log_path, child.log_tail())
        return end

    def _stop(self, child: Child) -> _Ending:
        """First a checkpoint; then its helpers may be what keeps it from ending; then nobody is asked any more."""
        job, settings = self._claim.job.id, self._settings

        def terminate() -> None:
            logger.warning("Job %s: no checkpoint within %g s; ending the child's group.", job, settings.stop_grace_s)
            child.terminate()

        def kill() -> None:
            logger.warning("Job %s: the child does not end; killing it.", job)
            child.kill()

        return _Ending(
            (0.0, child.ask_to_stop), (settings.stop_grace_s, terminate), (settings.child.term_grace_s, kill)
        )

    def _should_end(self) -> bool:
        return self._link.broken or self._link.stop_requested_by is not None or self._stopping.is_set()

    def _goes_back_to_the_queue(self, end: RunEnd) -> bool:
        if isinstance(end, RunFailed) and self._stopping.is_set():
            # A host that shuts down also ends the child's helpers, and what they leave behind looks like a failure.
            # A real one is met again by the next attempt.
            return True
        return isinstance(end, RunInterrupted) and self._link.stop_requested_by is None

    def _requeue(self) -> AttemptEnd:
        job = self._link.insist(lambda: self._store.requeue(self._claim), give_up=self._out_of_time)
        # Somebody asked for a stop in the very last moment.
        return AttemptEnd.CANCELLED if job.state is JobState.CANCELLED else AttemptEnd.REQUEUED

    def _decline(self, event: JobDeclined, *, for_s: float | None) -> AttemptEnd | None:
        """Leave the job to others; None where that is over, and the job still ours."""
        job = self._link.insist(lambda: self._store.decline(self._claim, event, for_s=for_s), give_up=self._out_of_time)
        if job is None:
            return None
        logger.warning("Job %s is left to others: %s", job.id, event.message)
        return AttemptEnd.CANCELLED if job.state is JobState.CANCELLED else AttemptEnd.DECLINED

    def _choose_checkpoint(self) -> CheckpointChosen | None:
        """Where this attempt begins; None where neither the job nor the one that it resumes has a known checkpoint."""
        job = holder = self._claim.job
        if job.checkpoint_step is None and job.resume and job.retry_of is not None:
            former = job.retry_of
            try:
                holder = self._link.insist(lambda: self._store.get(former), give_up=self._out_of_time)
            except JobError:
                return None  # Redis has forgotten it; its checkpoint may be here all the same.
        if holder.checkpoint_step is None or holder.checkpoint_host is None:
            return None
        step = visible_step(self._settings.output_root, job.spec, holder.id)
        newest = max(step, holder.checkpoint_step)
        return CheckpointChosen(step=step, newest_step=newest, newest_host=holder.checkpoint_host)

    def _left_to_others(self, chosen: CheckpointChosen | None) -> AttemptEnd | None:
        """Give the job back where this host lacks its data, or its checkpoint; None where it begins here."""
        host, wait_s = self._settings.host, self._settings.checkpoint_wait_s
        if differs := tell_differences(self._claim.job.spec, self._settings):
            return self._decline(JobDeclined(reason="data-differs", host=host, message=differs), for_s=None)
        if chosen is None or chosen.step == chosen.newest_step or chosen.newest_host == host:
            return None
        message = (
            f"its checkpoint of step {chosen.newest_step} lies on host {chosen.newest_host}, where this one does not "
            f"see it. It waits for that host until {wait_s:g} s after its requeue; then it starts again elsewhere."
        )
        return self._decline(JobDeclined(reason="checkpoint-elsewhere", host=host, message=message), for_s=wait_s)

    def _final_event(self, end: RunEnd, run_directory: RunDirectory) -> FinalEvent:
        match end:
            case RunSucceeded():
                succeeded = JobSucceeded(summary=end.summary, adapter_path=str(run_directory.published_path))
                # Should we end between publishing and telling, the next attempt tells it and does not train again.
                run_directory.leave_result(succeeded.model_dump_json())
                run_directory.publish()
                return succeeded
            case RunFailed():
                return JobFailed(code=end.code, message=end.message, hint=end.hint)
            case RunInterrupted():
                checkpoint = run_directory.newest_checkpoint()
                return JobCancelled(
                    by=self._link.stop_requested_by or self._claim.job.submitted_by,
                    step=max(end.step, checkpoint_step(checkpoint) if checkpoint else 0),
                    checkpoint=str(checkpoint) if checkpoint else None,
                )

    def _out_of_time(self) -> bool:
        """Whether a worker that has to go has waited for Redis long enough."""
        if not self._stopping.is_set():
            return False
        self._give_up_at = min(self._give_up_at, time.monotonic() + self._settings.stop_grace_s)
        return time.monotonic() > self._give_up_at


_END_OF: dict[type[FinalEvent], AttemptEnd] = {
    JobSucceeded: AttemptEnd.SUCCEEDED,
    JobFailed: AttemptEnd.FAILED,
    JobCancelled: AttemptEnd.CANCELLED,
}
