"""What anybody may read of the jobs: the half of the store that changes nothing. Keys: see `runner.store`."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, TypeVar

import redis
from pydantic import ValidationError

from runner.errors import JobError, UnavailableError
from runner.event_lines import StoredEvent
from runner.figures import Figures, read_figures
from runner.jobs import FINAL_STATES, JobRecord, JobState, WorkerInfo
from runner.pools import Drain, Freeze, PoolLimits
from runner.redis_client import redis_at_hand
from runner.reports import Record
from runner.settings import Retention
from runner.store_records import BadRecordError, microseconds, read_job, written_by_newer
from runner.store_scripts import StoreScripts

_log = logging.getLogger(__name__)

_Read = TypeVar("_Read", bound=Record)
_UNREADABLE_FREEZE = Freeze(reason="(unreadable)", by="?", at=datetime.fromtimestamp(0, UTC))

MAX_BLOCK_MS = 5000
"""The longest `StoreReader.feed` waits; below the client's socket timeout."""
MOST_QUEUED = 1000
"""Queued jobs of a pool that are read at most unless somebody asks for more."""


class StoreReader:
    """Reads jobs, queues, histories and workers. Safe to share between threads.

    Every method raises UnavailableError when Redis does not answer after the client's retries.

    Args:
        client: Built with `decode_responses=True`.
        lease_s: Seconds that a claim, a renewal and a worker's announcement hold.
        retention: How much is kept of a job that writes or ends through this store.
        prefix: What every key begins with, without the colon.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        lease_s: float = 120.0,
        retention: Retention = Retention(),  # noqa: B008 - frozen
        prefix: str = "qlora",
    ) -> None:
        self.client = client
        self.lease_s = lease_s
        self.retention = retention
        self._prefix = prefix
        self._told_newer: set[str] = set()
        self._scripts = StoreScripts(client, prefix, keep_events=retention.events)

    def find(self, job_id: str) -> JobRecord | None:
        """Read one job, None where there is none of that id.

        Raises:
            JobError: `record-invalid`, where it is not one of ours.
            UnavailableError: Also where a newer version of this software wrote it.
        """
        with redis_at_hand():
            fields: Any = self.client.hgetall(self._key("job", job_id))
        return read_job(fields) if fields else None

    def get(self, job_id: str) -> JobRecord:
        """Read one job.

        Raises:
            JobError: `job-not-found`, with the nearest id as a hint; `record-invalid`, where it is not one of ours.
            UnavailableError: Also where a newer version of this software wrote it.
        """
        found = self.find(job_id)
        if found is None:
            raise self._not_found(job_id)
        return found

    def states(self, job_ids: Sequence[str]) -> dict[str, str | None]:
        """Read only the states of jobs, None for those that are not there."""
        with redis_at_hand(), self.client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(self._key("job", job_id), "state")
            return dict(zip(job_ids, pipeline.execute(), strict=True))

    def jobs(self, limit: int = 20, states: Iterable[JobState] | None = None) -> list[JobRecord]:
        """Read the newest jobs first, all or those in some states."""
        # In one moment: a job that moves meanwhile must be seen in neither two states nor none.
        with redis_at_hand(), self.client.pipeline(transaction=True) as moment:
            for state in JobState if states is None else states:
                moment.zrevrange(self._key("jobs", state), 0, limit - 1, withscores=True)
            found: list[Any] = moment.execute()
        newest = sorted(((number, job_id) for rows in found for job_id, number in rows), reverse=True)
        return self._records([job_id for _, job_id in newest[:limit]])

    def active_or_recent(self, since: datetime) -> list[str]:
        """Ids of the jobs that ended at `since` or later, in the order of their ends, and then of all not over."""
        # In one moment: a job that moves meanwhile must be seen in neither two states nor none.
        with redis_at_hand(), self.client.pipeline(transaction=True) as moment:
            moment.zrangebyscore(self._key("finished"), microseconds(since), "+inf")
            for state in sorted(set(JobState) - FINAL_STATES):
                moment.zrange(self._key("jobs", state), 0, -1, withscores=True)
            ended, *active = moment.execute()
        return [*ended, *(job_id for job_id, _ in sorted(chain(*active), key=lambda row: row[1]))]

    def count(self, states: Iterable[JobState]) -> int:
        """Count the jobs in some states."""
        with redis_at_hand(), self.client.pipeline(transaction=True) as moment:
            for state in states:
                moment.zcard(self._key("jobs", state))
            return sum(moment.execute())

    def position(self, job_id: str) -> int | None:
        """Where a job stands in its pool's queue: 1 for the next to run, None when it is not queued.

        True as long as nobody submits, stops or ends a job; a claim only moves everybody up. Jobs that a limit of their
        submitter keeps from running stand behind all others.

        Raises:
            JobError: `job-not-found`.
        """
        _, position = self._run("position", job=self.get(job_id).id)
        return None if position is None else int(position)

    def queued(self, pool: str, limit: int = MOST_QUEUED) -> list[JobRecord]:
        """Read the front of a pool's queue, the next to run first."""
        _, ids = self._run("order", pool=pool, most=limit)
        return [job for job in self._records(ids) if job.state is JobState.QUEUED]

    def pools(self) -> list[str]:
        """Every pool that ever had a job, by name."""
        with redis_at_hand():
            return sorted(_texts(self.client.smembers(self._key("pools"))))

    def queue_lengths(self) -> dict[str, int]:
        """Count the queued jobs of every pool that ever had one."""
        pools = self.pools()
        with redis_at_hand():
            lengths: dict[str, Any] = {pool: self.client.zcard(self._key("queue", pool)) for pool in pools}
        return lengths

    def limits(self, pool: str) -> PoolLimits:
        """Read a pool's limits."""
        with redis_at_hand():
            fields: Any = self.client.hgetall(self._key("limits", pool))
        return _read(PoolLimits, json.dumps(fields), f"A limit of pool {pool}") or PoolLimits()

    def frozen(self) -> Freeze | None:
        """Read why nothing new starts, None while jobs do start."""
        with redis_at_hand():
            text: Any = self.client.get(self._key("freeze"))
        return None if text is None else _read(Freeze, text, "The freeze") or _UNREADABLE_FREEZE

    def drained(self) -> dict[str, Drain]:
        """Read the hosts that take no new jobs, by name."""
        with redis_at_hand():
            drains: Any = self.client.hgetall(self._key("drains"))
        found = {host: _read(Drain, text, f"The drain of host {host}") for host, text in sorted(drains.items())}
        return {host: drain for host, drain in found.items() if drain is not None}

    def events(self, job_id: str, after: int = 0) -> list[StoredEvent]:
        """Read a job's events with `seq` greater than `after`, in order, every milestone among them.

        There is no gap in what has not been thinned out (`runner.event_lines.MEASUREMENTS`).
        """
        _, rows = self._run("events", job=job_id, after=after)
        read = (_read(StoredEvent, row, f"An event of job {job_id}") for row in rows)
        return [stored for stored in read if stored is not None and stored.seq > after]

    def latest_news(self) -> str:
        """The cursor behind everything that has happened."""
        with redis_at_hand():
            count: Any = self.client.hget(self._key("counters"), "news")
        return str(count or 0)

    def feed(self, cursor: str, block_ms: int) -> tuple[str, list[str]]:
        """Wait until any job has news.

        Args:
            cursor: What the last call gave, or `"0"` to begin with every job there is. Stays valid for good.
            block_ms: Milliseconds to wait at most, 0 not to wait; more than `MAX_BLOCK_MS` counts as that.

        Returns:
            The next cursor, and the ids of the jobs that got events since the given one, longest silent first.
        """
        with redis_at_hand():
            block = min(block_ms, MAX_BLOCK_MS) or None
            self.client.xread({self._key("feed"): f"{cursor}-0"}, count=1, block=block)
            rows: Any = self.client.zrangebyscore(self._key("news"), f"({cursor}", "+inf", withscores=True)
            count: Any = self.client.hget(self._key("counters"), "news")
        if rows:
            return str(int(rows[-1][1])), [job_id for job_id, _ in rows]
        # A Redis that lost its data counts from the start again.
        return (cursor if int(count or 0) >= int(cursor) else "0"), []

    def workers(self, pool: str | None = None) -> list[WorkerInfo]:
        """Read the live workers, of one pool or of all, by name."""
        _, rows = self._run("workers")
        announced = sorted(zip(rows[::2], rows[1::2], strict=True))
        live = [
            worker for name, text in announced if (worker := _read(WorkerInfo, text, f"What worker {name} announced"))
        ]
        return [worker for worker in live if pool in (None, worker.pool)]

    def figures(self) -> Figures:
        """Read what there is to measure, in one step whose cost does not grow with the number of jobs that are over."""
        return read_figures(self._run("figures")[1])

    # --- inside --------------------------------------------------------------------------------------------------

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _run(self, step: str, **arguments: Any) -> tuple[str, Any]:
        with redis_at_hand():
            return self._scripts.run(step, **arguments)

    def _records(self, job_ids: Iterable[str]) -> list[JobRecord]:
        with redis_at_hand(), self.client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self._key("job", job_id))
            found: list[Any] = pipeline.execute()
        return list(self._readable(fields for fields in found if fields))

    def _readable(self, rows: Iterable[dict[str, str]]) -> Iterator[JobRecord]:
        """What a newer version wrote is left out, and said once; and so is what somebody has planted.

        Neither must hide all others.
        """
        for fields in rows:
            try:
                yield read_job(fields)
            except BadRecordError as error:
                _log.warning("%s", error)
            except UnavailableError:
                if fields["id"] not in self._told_newer:
                    self._told_newer.add(fields["id"])
                    _log.warning("%s Until then it is left out here.", written_by_newer(fields["id"]))

    def _not_found(self, job_id: str) -> JobError:
        near = difflib.get_close_matches(job_id, [job.id for job in self.jobs(limit=200)], n=1)
        hint = f"Did you mean {near[0]}?" if near else "Ids look like demo-k3x7q; the list of jobs shows them all."
        return JobError(f"There is no job {job_id!r}.", hint=hint, code="job-not-found")


def _read(model: type[_Read], text: str, what: str) -> _Read | None:
    """A stored JSON object; None, and a warning, where it is not one of ours: whoever planted it must not stop us."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        _log.warning("%s in Redis is not one of ours: %s", what, error.errors(include_input=False)[0]["msg"])
        return None


def _texts(reply: Any) -> list[str]:
    """Redis' replies are typed for every kind of client; ours holds text."""
    return list(reply)
