"""What workers and reconcilers do to keep the jobs going; `runner.store.Store` adds requests and attempts to it."""

from __future__ import annotations

import logging
from typing import Any, Literal
from uuid import uuid4

from runner.job_events import JobCancelled, JobFailed, JobRequeued
from runner.jobs import MOST_LOSSES, POISON_LOSSES, JobRecord, JobState, WorkerInfo
from runner.pools import Obstacle
from runner.redis_client import redis_at_hand
from runner.store_reading import StoreReader
from runner.store_records import BadRecordError, read_job, worker_arguments
from runner.store_scripts import IllegalMoveError, legal

_log = logging.getLogger(__name__)

# The step that calls an attempt dead fills in what stands in braces.
_POISONED = {
    "code": "poison-job",
    "message": "Its worker was lost {count} times {phase}, without a newer checkpoint in between: on {hosts}.",
    "hint": "Look on these hosts for the kernel's out-of-memory killer (dmesg -T) and for errors of the GPU, and at "
    "the end of the last attempt's train.log. Then start a new job, one that takes less memory if that was it.",
}
_EXHAUSTED = {
    "code": "too-many-lost-hosts",
    "message": "Its worker was lost {count} times: on {hosts}.",
    "hint": "Find out why these hosts go away. The checkpoints stay where they are.",
}


NEVER_US = 9_000_000_000_000_000
"""A moment, µs since 1970, that does not come; `NEVER` in `lua/decline.lua`."""


def events_of_giving_back(reason: Literal["host-lost", "worker-stopped"]) -> dict[str, str]:
    """The two events of which a job that is given back gets one; the step fills in what only it knows."""
    return {
        "requeued": JobRequeued(reason=reason, host="").model_dump_json(),
        "cancelled": JobCancelled(by="").model_dump_json(),
    }


class StoreUpkeep(StoreReader):
    """Leases that run out, workers that come and go, jobs that are forgotten. Arguments: see `StoreReader`."""

    def expire_leases(self) -> list[JobRecord]:
        """Queue again every job whose lease has run out; those that were stopping become cancelled.

        A job fails instead with `poison-job` when that was its second host in the same phase without a newer checkpoint
        in between, and with `too-many-lost-hosts` after `runner.jobs.MOST_LOSSES` in all.

        Returns:
            The jobs that moved in this call; empty for all but one of several callers at once.
        """
        with redis_at_hand():
            first: Any = self.client.zrange(self._key("leases"), 0, 0)
            if not first:
                return []
            seconds, microseconds = self.client.time()
            late: Any = self.client.zrangebyscore(self._key("leases"), "-inf", seconds * 1_000_000 + microseconds)
        moved = []
        for job_id in late:
            status, answer = self._expire(job_id)
            try:
                # What a newer version submitted is left to its own reconcilers.
                moved += [] if status in {"lost", "newer"} else [read_job(legal(status, answer))]
            except (BadRecordError, IllegalMoveError) as error:
                # It must not keep the others from coming back.
                _log.error("The lease of %s has run out, but: %s", job_id, error)  # no news in a trace
        return moved

    def take_back(self, job_id: str, token: int) -> JobRecord | None:
        """Call an attempt dead whose worker is known to be: what `expire_leases` does, without waiting for the lease.

        Returns:
            The job as it is then; None where that attempt does not hold it any more, or nobody here can read
            it.
        """
        status, answer = self._expire(job_id, token=str(token), write=f"take-back-{token}")
        try:
            return None if status in {"lost", "newer"} else read_job(legal(status, answer))
        except (BadRecordError, IllegalMoveError) as error:
            _log.error("The worker of %s is dead, but: %s", job_id, error)  # no news in a trace
            return None

    def forget(self, most: int = 100) -> int:
        """Remove what is kept of jobs that ended longer than `retention.days` ago, the oldest first.

        Args:
            most: Jobs removed in this call.

        Returns:
            How many were removed.
        """
        _, count = self._run("forget", keep_us=round(self.retention.days * 86_400_000_000), most=most)
        return int(count)

    def claimable(self) -> dict[str, int]:
        """Count the queued jobs of every pool that could be claimed at once, as far as a freeze and its limits go.

        Lets submitters take turns also with jobs that a version without turns has queued or claimed.
        """
        counts = {}
        for pool in self.pools():
            counts[pool], aligned = self._run("claimable", pool=pool)[1]
            if aligned:
                _log.warning("%d jobs of an older version of this software were put in order with the others.", aligned)
        return counts

    def settled_s(self) -> float:
        """Seconds for which Redis has been at hand: small after a restart, a failover, an outage, a jump of its clock.

        Every reconciler asks, several times a lease, so two thirds of a lease without a question mean that none of them
        reached it. Then no attempt could renew its lease either.
        """
        with redis_at_hand():
            info: Any = self.client.info("server")
        _, seconds = self._run("settled", run=info["run_id"], pause_us=self._lease_us * 2 // 3, lease_us=self._lease_us)
        return float(seconds)

    def take_turn(self, what: str, for_s: float) -> bool:
        """Be the one of all processes that does something; False for whoever asks again within `for_s` seconds."""
        with redis_at_hand():
            return bool(self.client.set(self._key("turn", what), "1", nx=True, px=max(1, round(for_s * 1000))))

    # --- what a worker does ---------------------------------------------------------------------------------------

    def announce(self, worker: WorkerInfo) -> None:
        """Say that a worker lives; holds for `lease_s`."""
        with redis_at_hand():
            self.client.set(
                self._key("worker", worker.name), worker.model_dump_json(), px=max(1, int(self.lease_s * 1000))
            )
            self.client.sadd(self._key("workers"), worker.name)

    def withdraw(self, name: str) -> None:
        """Take a worker off the list."""
        with redis_at_hand():
            self.client.delete(self._key("worker", name))
            self.client.srem(self._key("workers"), name)

    def declined_by(self, host: str) -> list[JobRecord]:
        """Read the queued jobs that a host has declined for good, which is until it readmits them."""
        with redis_at_hand():
            ids: Any = self.client.zrangebyscore(self._key("declined", host), NEVER_US, "+inf")
        return [job for job in self._records(ids) if job.state is JobState.QUEUED] if ids else []

    def readmit(self, job_id: str, host: str) -> None:
        """Let a host claim a job again that it has declined."""
        self._run("readmit", job=job_id, host=host)

    def obstacle(self, pool: str, worker: WorkerInfo) -> Obstacle | None:
        """What keeps a worker from a pool's jobs while other workers may take them; None when nothing does."""
        _, answer = self._run("obstacle", pool=pool, **worker_arguments(worker))
        return None if answer is None else Obstacle(answer)

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _lease_us(self) -> int:
        return int(self.lease_s * 1_000_000)

    def _expire(self, job_id: str, **more: str) -> tuple[str, Any]:
        return self._run(
            "expire",
            job=job_id,
            **({"write": uuid4().hex} | more),
            poisoned=JobFailed(**_POISONED).model_dump_json(),
            exhausted=JobFailed(**_EXHAUSTED).model_dump_json(),
            poison_losses=POISON_LOSSES,
            most_losses=MOST_LOSSES,
            **events_of_giving_back("host-lost"),
        )
