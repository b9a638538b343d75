"""What an attempt does with its job: claim it, hold it, write about it, end it or give it back.

Whatever it writes is checked against its fencing token in the step that writes it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from dataclasses import dataclass
from uuid import uuid4

from runner.event_size import within_size
from runner.events import ChildEvent
from runner.job_events import FinalEvent, JobCancelled, JobClaimed, JobDeclined, JobFailed, JobSucceeded
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.redaction import redact_all
from runner.store_records import (
    BadRecordError,
    as_fields,
    outcome_fields,
    progress_fields,
    read_job,
    worker_arguments,
    written_by_newer,
)
from runner.store_scripts import legal
from runner.store_switches import StoreSwitches
from runner.store_upkeep import events_of_giving_back

_log = logging.getLogger(__name__)

_ENDS: dict[type[FinalEvent], JobState] = {
    JobSucceeded: JobState.SUCCEEDED,
    JobFailed: JobState.FAILED,
    JobCancelled: JobState.CANCELLED,
}


class LostLease(Exception):  # noqa: N818 - nobody's error: another attempt holds the job, or it is over
    """This attempt no longer holds its job: stop the child, publish nothing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write about one attempt."""

    job: JobRecord
    """As it was when claimed; `job.attempt` is this attempt's number."""
    token: int
    """Fencing token, greater than any before it."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a heartbeat."""

    owned: bool
    """False once the job is another attempt's or over: stop the child, publish nothing."""
    stop_requested_by: str | None = None
    """Who asked this attempt to stop, None while nobody did."""


class StoreAttempts(StoreSwitches):
    """Every method that takes a `Claim` writes only while that claim holds its job. Arguments: see `StoreReader`."""

    def claim(self, pool: str, worker: WorkerInfo, *, request_id: str | None = None) -> Claim | None:
        """Take the next queued job of a pool that fits the worker's devices.

        None when there is none, or limits, a freeze or a drain forbid it; `obstacle` tells the last from the others.

        A job that a newer version of this software submitted is left to a newer worker, and the next one taken.

        Higher priorities come first. Within one, submitters take turns: first comes who has the fewest jobs running in
        this pool, of those whoever came or was served longest ago; of one submitter's jobs the one that waits longest.

        Args:
            pool: Whose queue.
            worker: Who takes it.
            request_id: Unique for one wish. Whoever asks again after an UnavailableError gives the same one, so that a
                job that was claimed by a call without an answer is not left to run out its lease.
        """
        wish = request_id or uuid4().hex
        event = JobClaimed(worker=worker.name, host=worker.host, device=worker.device, attempt=1)
        for count in itertools.count():
            status, answer = self._run(
                "claim",
                write=f"{wish}-{count}" if count else wish,
                pool=pool,
                **worker_arguments(worker),
                lease_us=self._lease_us,
                event=event.model_dump_json(),
            )
            if status == "newer":
                _log.warning(
                    "%s It stays in the queue of pool %s for a worker that can.", written_by_newer(answer), pool
                )
            if status in {"none", "newer"}:
                break
            try:
                return Claim(read_job(legal(status, answer)), int(as_fields(answer)["token"]))
            except BadRecordError as error:
                self._end_bad_record(as_fields(answer), error)
        return None

    def _end_bad_record(self, fields: dict[str, str], error: BadRecordError) -> None:
        """Fail a job that was claimed but cannot be read, so that nobody claims it again."""
        event = JobFailed(code=error.code, message=error.message, hint=error.hint)
        self._run(
            "finish",
            write=uuid4().hex,
            job=fields["id"],
            token=fields["token"],
            state=JobState.FAILED,
            fields=outcome_fields(event),
            event=event.model_dump_json(),
        )

    def renew(self, claim: Claim) -> Renewal:
        """Hold the job for another `lease_s`, and learn whether somebody wants it to stop."""
        status, stop_by = self._run("renew", job=claim.job.id, token=str(claim.token), lease_us=self._lease_us)
        return Renewal(owned=status == "ok", stop_requested_by=stop_by or None)

    def append(self, claim: Claim, event: ChildEvent) -> None:
        """Add an event to the job's history, shortened where it is huge. The same event twice is one event.

        Raises:
            LostLease: The job is no longer this attempt's.
        """
        event = within_size(redact_all(event))  # half a secret would not be known as one
        text = event.model_dump_json()
        status, _ = self._run(
            "append",
            write=_write_id(claim, text),
            job=claim.job.id,
            token=str(claim.token),
            fields=progress_fields(event, claim.job.host),
            event=text,
        )
        if status == "lost":
            raise _lost(claim)

    def finish(self, claim: Claim, event: FinalEvent) -> JobRecord:
        """End the job as the event says. The same end twice is one end.

        Raises:
            LostLease: The job is no longer this attempt's.
            IllegalMoveError: `job_cancelled` for a job that nobody asked to stop.
        """
        event = within_size(redact_all(event))
        text = event.model_dump_json()
        status, answer = self._run(
            "finish",
            write=_write_id(claim, text),
            job=claim.job.id,
            token=str(claim.token),
            state=_ENDS[type(event)],
            fields=outcome_fields(event),
            event=text,
        )
        if status == "lost":
            raise _lost(claim)
        return read_job(legal(status, answer))

    def requeue(self, claim: Claim) -> JobRecord:
        """Give the job back to its old place in the queue; one that is stopping becomes cancelled instead.

        Raises:
            LostLease: The job is no longer this attempt's.
        """
        status, answer = self._run(
            "requeue",
            write=_write_id(claim, "requeue"),
            job=claim.job.id,
            token=str(claim.token),
            **events_of_giving_back("worker-stopped"),
        )
        if status == "lost":
            raise _lost(claim)
        return read_job(legal(status, answer))

    def decline(self, claim: Claim, event: JobDeclined, *, for_s: float | None = None) -> JobRecord | None:
        """Give back a job that this host cannot run as it was asked; no attempt is spent. Others may claim it.

        Args:
            claim: Of an attempt that has written nothing.
            event: Why; the step fills in the host, and whether others are left.
            for_s: Seconds, counted from when the job came into the queue, for which this host does not claim it again;
                None until it calls `readmit`.

        Returns:
            The job; None where those seconds are over: it is still this attempt's.

        Raises:
            LostLease: The job is no longer this attempt's.
        """
        status, answer = self._run(
            "decline",
            write=_write_id(claim, "decline"),
            job=claim.job.id,
            token=str(claim.token),
            declined=redact_all(event).model_dump_json(),
            cancelled=JobCancelled(by="").model_dump_json(),
            **({} if for_s is None else {"for_us": round(for_s * 1_000_000)}),
        )
        if status == "lost":
            raise _lost(claim)
        return None if status == "waited" else read_job(legal(status, answer))


def _write_id(claim: Claim, text: str) -> str:
    """The same write of the same attempt has the same id, in whatever call it comes."""
    return hashlib.sha256(f"{claim.token} {text}".encode()).hexdigest()[:32]


def _lost(claim: Claim) -> LostLease:
    return LostLease(f"Attempt {claim.job.attempt} no longer holds job {claim.job.id}.")
