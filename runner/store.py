"""Jobs, leases, order and events in Redis: the truth about every job, and the only place that knows a Redis key.

A change of state and the event that tells of it are one Lua step (`lua/`), checked against `runner.jobs.TRANSITIONS`;
what an attempt writes is also checked against its fencing token. Every step may be repeated after a lost reply: writes
carry an id and are carried out once. Time is Redis' own. Keys, behind the prefix (`qlora:`):

    job:<id>            hash    the record; also number, place, token (while an attempt holds it), claim,
                                gpus and min_gpu_memory_gib (what it needs of a worker, 0: any memory),
                                thinned (events left out), bytes (of events), thin_at and bytes_at (when to thin)
    job:<id>:events     list    the history, one JSON `StoredEvent` each; measurements are thinned
    job:<id>:writes     list    ids of the last writes, to recognise repeats; expires a day after the job's end
    jobs:<state>        zset    job id -> number, one set for each state
    queue:<pool>        zset    job id -> place (priority, then number) of every queued job
    queue:<pool>:<who>  zset    the same of one submitter
    turns:<pool>        zset    submitter with queued jobs -> turn; the first is served next (`lua/shared/turns.lua`)
    seats:<pool>        hash    submitter with jobs -> number, greater for who came or was served later; breaks ties
    active:<pool>       set     ids of the running and stopping jobs
    active:<pool>:<who> set     the same of one submitter
    limits:<pool>       hash    `PoolLimits`
    freeze              string  JSON `Freeze`, while everything is frozen
    job:<id>:declined   set     hosts that have declined it; gone with its end
    declined:<host>     zset    job id -> until when this host claims it no more, µs
    drains              hash    host -> JSON `Drain`, while it takes no new jobs
    leases              zset    job id -> when its lease runs out, µs
    finished            zset    job id -> when it ended, µs
    news                zset    job id -> count of all events when its last one came
    feed                stream  wakes up who waits for news; capped
    totals              hash    pool, event kind and code or reason -> how many such events have moved a job
    counters            hash    number (jobs), token (fencing tokens), news (events), seat (ends of jobs)
    pools               set     every pool that ever had a job
    request:<id>        string  job id, for submits that come twice; expires after a week
    claim:<id>          string  job id, for claims that come twice; expires after an hour
    worker:<name>       string  JSON `WorkerInfo`; expires
    workers             set     names of workers
    turn:<what>         string  there while one process does what all would do; expires
    server              hash    run id of the Redis process, since when it has been at hand, and when it was asked last
"""

from __future__ import annotations

from typing import Self
from uuid import uuid4

from runner.errors import JobError, PolicyError, UnavailableError
from runner.job_events import JobCancelled, JobQueued, StopRequested
from runner.jobs import JobRecord, Priority, new_job_id
from runner.redis_client import build_client, redis_at_hand
from runner.redis_server import require_no_cluster
from runner.settings import Retention
from runner.spec import RunSpec
from runner.store_attempts import Claim, LostLease, Renewal, StoreAttempts
from runner.store_records import SCHEMA_VERSION, need_fields, origin_fields, read_job, written_by_newer
from runner.store_scripts import IllegalMoveError, legal

__all__ = ["Claim", "IllegalMoveError", "LostLease", "Renewal", "Store"]

_RANKS: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


class Store(StoreAttempts):
    """What every process knows of the jobs, and what requesters ask for. Safe to share between threads.

    Every method raises UnavailableError when Redis does not answer after the client's retries.

    Args:
        client: Built with `decode_responses=True`; close it with `close`.
        lease_s: Seconds that a claim, a renewal and a worker's announcement hold.
        retention: How much is kept of a job that writes or ends through this store.
        prefix: What every key begins with, without the colon.
    """

    @classmethod
    def connect(cls, url: str, *, lease_s: float = 120.0, retention: Retention = Retention()) -> Self:  # noqa: B008
        """Connect and make sure that Redis answers.

        Raises:
            UnavailableError: The URL cannot be meant, nothing answers there, or it is a server of a cluster.
        """
        client = build_client(url, decode_responses=True)
        try:
            with redis_at_hand():
                client.ping()
            require_no_cluster(client)
        except UnavailableError:
            client.close()
            raise
        return cls(client, lease_s=lease_s, retention=retention)

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def submit(
        self,
        spec: RunSpec,
        *,
        submitted_by: str,
        origin: dict[str, str],
        request_id: str,
        priority: Priority = "normal",
        retry_of: str | None = None,
        resume: bool = False,
    ) -> JobRecord:
        """Put a job into its pool's queue, behind the submitter's own; `job_queued` tells its true position.

        Args:
            spec: The snapshot to run.
            submitted_by: A Slack user id, or a login name.
            origin: Where to report, opaque here.
            request_id: Unique for one wish; a repeat gets the job of the first call, whatever else it says.
            priority: Jobs of a higher priority are claimed first.
            retry_of: The job that this one repeats (`runner.retrying`).
            resume: Whether it goes on from that job's newest checkpoint.

        Raises:
            PolicyError: `limit-reached`: too many jobs wait already, see `runner.pools.PoolLimits`.
        """
        pool = spec.project.compute.pool
        fields = {
            "schema_version": str(SCHEMA_VERSION),
            "spec": spec.model_dump_json(),
            "pool": pool,
            "priority": priority,
            "submitted_by": submitted_by,
            **need_fields(spec.project.compute),
            **origin_fields(origin),
        }
        if retry_of is not None:
            fields |= {"retry_of": retry_of, "resume": str(int(resume))}
        while True:
            job_id = new_job_id(spec.project.name)
            status, answer = self._run(
                "submit",
                request=request_id,
                job=job_id,
                rank=_RANKS[priority],
                fields=fields | {"id": job_id},
                event=JobQueued(position=1, pool=pool).model_dump_json(),
            )
            if status == "refused":
                raise _limit_reached(pool, submitted_by, *answer)
            if status == "ok":
                return read_job(answer)

    def set_origin(self, job_id: str, origin: dict[str, str]) -> None:
        """Add to where a job is reported, or replace parts of it.

        Raises:
            JobError: `job-not-found`.
        """
        status, _ = self._run("origin", job=job_id, fields=origin_fields(origin))
        if status == "missing":
            raise self._not_found(job_id)

    def request_stop(self, job_id: str, by: str) -> JobRecord:
        """End a queued job for good, or ask the running attempt to stop; asking again changes nothing.

        Raises:
            JobError: `job-not-found`, or `job-finished` when it is over.
            UnavailableError: Also where a newer version of this software submitted it.
        """
        status, answer = self._run(
            "stop",
            write=uuid4().hex,
            job=job_id,
            by=by,
            requested=StopRequested(by=by).model_dump_json(),
            cancelled=JobCancelled(by=by).model_dump_json(),
        )
        if status == "missing":
            raise self._not_found(job_id)
        if status == "newer":
            raise written_by_newer(job_id)
        if status == "finished":
            raise JobError(f"Job {job_id} is over: it has {_PAST[answer]}.", code="job-finished")
        return read_job(legal(status, answer))


_PAST = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


def _limit_reached(pool: str, submitted_by: str, name: str, waiting: int, most: int) -> PolicyError:
    who = submitted_by if name == "max_queued_per_user" else "It"
    return PolicyError(
        f"Pool {pool!r} takes no more jobs now. {who} has {waiting} waiting there, and the limit is {most}.",
        hint=f"Start it again when fewer wait, or stop one. The operator's limit is {name} = {most}.",
        code="limit-reached",
    )
