"""The store against a model of it: random workers, submitters, operators, stops, lost replies and lost hosts.

`make chaos` runs it with many more and longer examples (profile `chaos`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runner.errors import JobError, PolicyError
from runner.events import CheckpointSaved, ChildEvent, PhaseStarted
from runner.job_events import FinalEvent, JobCancelled, JobDeclined, JobFailed, JobSucceeded
from runner.jobs import FINAL_STATES, JobState, Priority, WorkerInfo
from runner.pools import PoolLimits
from runner.reports import Phase
from runner.settings import Retention
from runner.spec import RunSpec
from runner.store import Claim, IllegalMoveError, LostLease, Store
from tests.examples import SUMMARY
from tests.runner.store_comparison import compare, keys
from tests.runner.store_model import RANKS, ModelJob, StoreModel

POOLS, PEOPLE, HOSTS = ("a", "b"), ("ann", "bob", "eve"), ("host-1", "host-2", "host-3")
KEEP_EVENTS = 8
"""So few that histories of some attempts are thinned."""
MOST_WISHES = 40
ENDS: dict[JobState, FinalEvent] = {
    JobState.SUCCEEDED: JobSucceeded(summary=SUMMARY, adapter_path="/out/adapter"),
    JobState.FAILED: JobFailed(code="dataset", message="m"),
    JobState.CANCELLED: JobCancelled(by="eve"),
}
NEWS: tuple[ChildEvent, ...] = (
    *(PhaseStarted(phase=phase) for phase in (Phase.MODEL, Phase.TRAINING)),
    *(CheckpointSaved(step=step, path=f"/out/checkpoint-{step}") for step in range(1, 31)),
)
UNABLE = JobDeclined(reason="data-differs", host="", message="m")
SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)

pools, people, hosts = st.sampled_from("aaab"), st.sampled_from(PEOPLE), st.sampled_from(HOSTS)
wishes = st.tuples(pools, people, st.sampled_from(list(RANKS)))
numbers = st.integers(0, 7)
"""Which of those that there are, counted from the newest; of claims, from those that still hold their job."""
few = st.sampled_from([None, None, 1, 2])
seldom = st.sampled_from([False, False, False, True])
twice = seldom
"""Whether the reply gets lost, so that the client sends the same again."""


class StoreMachine(RuleBasedStateMachine):
    """Every step is taken in the store and in the model; afterwards they have to agree in everything."""

    def __init__(self, client: redis.Redis, spec: RunSpec) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.spec = spec
        self.store = Store(client, retention=Retention(events=KEEP_EVENTS))
        self.model = StoreModel()
        self.claims: list[Claim] = []
        self.numbers = count(1)

    @initialize(wishes=st.lists(wishes, min_size=4, max_size=10), busy=st.lists(hosts, max_size=3))
    def begin(self, wishes: list[tuple[str, str, Priority]], busy: list[str]) -> None:
        for wish in wishes:
            self.submit(wish, again=False)
        for host in busy:
            self.claim(POOLS[0], host, again=False)

    @rule(wish=wishes, again=twice)
    def submit(self, wish: tuple[str, str, Priority], again: bool) -> None:
        pool, who, priority = wish
        request = f"request-{next(self.numbers)}"
        if self.model.full(pool, who):
            with pytest.raises(PolicyError):
                self._submit(pool, who, priority, request)
            return
        job_id = self._submit(pool, who, priority, request)
        assert job_id not in self.model.jobs
        self.model.submit(job_id, pool, who, priority, request)
        if again:
            assert self._submit(pool, who, priority, request) == job_id

    @precondition(lambda self: self.model.requests)
    @rule(which=numbers)
    def submit_an_old_request(self, which: int) -> None:
        request, job_id = _choose(self.model.requests.items(), which)
        if job_id in self.model.jobs:
            assert self._submit("a", "eve", "high", request) == job_id

    @precondition(lambda self: self.model.jobs)
    @rule(which=numbers, by=people, again=twice)
    def stop(self, which: int, by: str, again: bool) -> None:
        job = _choose(self.model.jobs.values(), which)
        if job.final:
            with pytest.raises(JobError, match="is over"):
                self.store.request_stop(job.id, by)
            return
        self.model.stop(job, by)
        assert self.store.request_stop(job.id, by).state is job.state
        if again and not job.final:
            self.store.request_stop(job.id, "eve")

    @precondition(lambda self: len(self.model.wishes) < MOST_WISHES)
    @rule(pool=pools, host=hosts, again=twice)
    def claim(self, pool: str, host: str, again: bool) -> None:
        wish = f"wish-{next(self.numbers)}"
        job = self.model.next_claim(pool, host)
        claim = self.store.claim(pool, _worker(pool, host), request_id=wish)
        assert (claim and claim.job.id) == (job and job.id)
        if claim is None or job is None:
            return
        assert claim.token > self.model.greatest_token
        self.model.claim(job, host, claim.token, wish)
        self.claims.append(claim)
        if again:
            assert self.store.claim(pool, _worker(pool, host), request_id=wish) == claim

    @rule(host=hosts)
    def claim_in_the_busier_pool(self, host: str) -> None:
        if len(self.model.wishes) < MOST_WISHES:
            self.claim(POOLS[0], host, again=False)

    @precondition(lambda self: self.model.wishes)
    @rule(which=numbers)
    def claim_by_an_old_wish(self, which: int) -> None:
        wish, job_id = _choose(self.model.wishes.items(), which)
        job = self.model.jobs.get(job_id)
        claim = self.store.claim("a", _worker("a", "host-1"), request_id=wish)
        held = job is not None and job.active and job.wish == wish
        assert (claim and (claim.job.id, claim.token)) == ((job_id, job.token) if job and held else None)

    @precondition(lambda self: self.claims)
    @rule(which=numbers)
    def renew(self, which: int) -> None:
        claim, job, holds = self._a_claim(which)
        renewal = self.store.renew(claim)
        assert renewal.owned is holds
        if holds:
            assert job is not None
            assert renewal.stop_requested_by == job.stop_by
        elif job is not None:
            self.model.hear_of(job, claim.token)

    @precondition(lambda self: self.claims)
    @rule(which=numbers, news=st.lists(st.sampled_from(NEWS), min_size=1, max_size=8), again=twice)
    def append(self, which: int, news: list[ChildEvent], again: bool) -> None:
        claim, job, holds = self._a_claim(which)
        for event in news * (1 + again):
            write, tell = f"{event.kind} {event}", partial(self.store.append, claim, event)
            if not self._is_told(claim, job, holds, write, tell):
                continue
            assert job is not None
            if isinstance(event, PhaseStarted):
                job.phase = event.phase
            elif isinstance(event, CheckpointSaved):
                job.step = event.step
            job.tell(event.kind)

    @precondition(lambda self: self.claims)
    @rule(which=numbers, state=st.sampled_from(sorted(ENDS)), again=twice)
    def finish(self, which: int, state: JobState, again: bool) -> None:
        claim, job, holds = self._a_claim(which)
        event = ENDS[state]
        if holds and job and state is JobState.CANCELLED and job.state is JobState.RUNNING:
            with pytest.raises(IllegalMoveError):
                self.store.finish(claim, event)
            return
        for _ in range(1 + again):
            if self._is_told(claim, job, holds, event.kind, lambda: self.store.finish(claim, event)):
                assert job is not None
                self.model.end(job, state)

    @precondition(lambda self: self.claims)
    @rule(which=numbers, again=twice)
    def give_back(self, which: int, again: bool) -> None:
        claim, job, holds = self._a_claim(which)
        for _ in range(1 + again):
            if self._is_told(claim, job, holds, "give back", lambda: self.store.requeue(claim)):
                assert job is not None
                self.model.give_back(job)

    @precondition(lambda self: self.claims)
    @rule(which=numbers, again=twice)
    def decline(self, which: int, again: bool) -> None:
        claim, job, holds = self._a_claim(which)
        if job is not None and any(token == claim.token for token, write in job.writes if write != "decline"):
            return  # It has begun.
        for _ in range(1 + again):
            if self._is_told(claim, job, holds, "decline", lambda: self.store.decline(claim, UNABLE)):
                assert job is not None
                self.model.decline(job)

    @precondition(lambda self: any(job.declined_by for job in self.model.jobs.values()))
    @rule(which=numbers, host=hosts)
    def readmit(self, which: int, host: str) -> None:
        job = _choose([job for job in self.model.jobs.values() if job.declined_by], which)
        job.declined_by.discard(host)
        self.store.readmit(job.id, host)

    @precondition(lambda self: any(job.active for job in self.model.jobs.values()))
    @rule(which=numbers, comes_back=st.sampled_from(["never", "never", "in time", "too late"]))
    def a_lease_runs_out(self, which: int, comes_back: str) -> None:
        job = _choose([job for job in self.model.jobs.values() if job.active], which)
        (claim,) = [claim for claim in self.claims if claim.token == job.token]
        self.client.zadd("qlora:leases", {job.id: 1})
        if comes_back == "in time":
            assert self.store.renew(claim).owned
            assert self.store.expire_leases() == []
            return
        self.model.lose(job)
        assert [(moved.id, moved.state) for moved in self.store.expire_leases()] == [(job.id, job.state)]
        assert self.store.expire_leases() == []
        if comes_back == "too late":
            assert not self.store.renew(claim).owned
            self.model.hear_of(job, claim.token)

    @precondition(lambda self: any(job.final for job in self.model.jobs.values()))
    @rule(which=numbers)
    def a_finished_job_is_forgotten(self, which: int) -> None:
        job = _choose([job for job in self.model.jobs.values() if job.final], which)
        self.client.zadd("qlora:finished", {job.id: 1})
        self.model.forget(job)
        assert self.store.forget() == 1

    @rule(pool=pools, most=st.builds(PoolLimits, max_running=few, max_running_per_user=few, max_queued=few))
    def limit(self, pool: str, most: PoolLimits) -> None:
        self.model.limits[pool] = most
        self.store.set_limits(pool, most)

    @rule(frozen=seldom)
    def freeze_or_unfreeze(self, frozen: bool) -> None:
        self.model.frozen = frozen
        if frozen:
            self.store.freeze("upgrade", "eve")
        else:
            self.store.unfreeze()

    @rule(host=hosts, drained=seldom)
    def drain_or_undrain(self, host: str, drained: bool) -> None:
        self.model.drained = self.model.drained - {host} | ({host} if drained else set())
        if drained:
            self.store.drain(host, "eve")
        else:
            self.store.undrain(host)

    @rule()
    def the_server_forgets_its_scripts(self) -> None:
        self.client.script_flush()

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        compare(self.client, self.model)

    @invariant()
    def positions_are_the_order_of_claims(self) -> None:
        for pool in POOLS:
            order = [job.id for job in self.model.order(pool)]
            assert self.store._run("order", pool=pool)[1] == order
            assert [self.store._run("position", job=job_id)[1] for job_id in order] == list(range(1, len(order) + 1))
            assert self.client.zrange(f"qlora:turns:{pool}", 0, 0) == [job.who for job in self.model.order(pool)[:1]]
            # And nothing had to be put right before it could be counted.
            assert self.store._run("claimable", pool=pool)[1] == [self.model.claimable(pool), 0]

    def teardown(self) -> None:
        """Whatever happened, all jobs can be run to their end, each once, and nothing of anybody's turn is left."""
        self.store.unfreeze()
        for host in HOSTS:
            self.store.undrain(host)
            for job_id in self.model.jobs:
                self.store.readmit(job_id, host)
        for claim in self.claims:
            if self._job_of(claim)[1]:
                self.store.finish(claim, ENDS[JobState.FAILED])
        for pool in POOLS:
            self.store.set_limits(pool, PoolLimits())
            while (left_over := self.store.claim(pool, _worker(pool, HOSTS[0]))) is not None:
                self.store.finish(left_over, ENDS[JobState.SUCCEEDED])
        assert {job.state for job in self.store.jobs(10**6)} <= FINAL_STATES
        left = [name.split(":")[0] for name in keys(self.client)]
        assert not {"queue", "turns", "seats", "active", "leases", "limits"} & set(left)

    def _submit(self, pool: str, who: str, priority: Priority, request: str) -> str:
        compute = self.spec.project.compute.model_copy(update={"pool": pool})
        spec = self.spec.model_copy(update={"project": self.spec.project.model_copy(update={"compute": compute})})
        return self.store.submit(spec, submitted_by=who, origin={}, request_id=request, priority=priority).id

    def _a_claim(self, which: int) -> tuple[Claim, ModelJob | None, bool]:
        """One of the claims that were ever made, its job unless forgotten, and whether it holds it."""
        claim = _choose(sorted(self.claims, key=lambda one: (self._job_of(one)[1], one.token)), which)
        return claim, *self._job_of(claim)

    def _job_of(self, claim: Claim) -> tuple[ModelJob | None, bool]:
        job = self.model.jobs.get(claim.job.id)
        return job, job is not None and job.token == claim.token

    def _is_told(self, claim: Claim, job: ModelJob | None, holds: bool, write: str, tell: Callable[[], object]) -> bool:
        """Let an attempt write; whether that was new. A stale one is refused, a repeat changes nothing."""
        if job is not None and (claim.token, write) in job.writes:
            tell()
            return False
        if not holds:
            with pytest.raises(LostLease):
                tell()
            return False
        tell()
        assert job is not None
        job.writes.add((claim.token, write))
        return True


def _choose(these: Iterable[Any], which: int) -> Any:
    """The chosen one, counted from the newest."""
    found = list(these)
    return found[-1 - which % len(found)]


def _worker(pool: str, host: str) -> WorkerInfo:
    return WorkerInfo(
        name=f"{host}:1",
        host=host,
        pool=pool,
        device="cpu",
        stack="current",
        started_at=SOME_TIME,
        last_seen_at=SOME_TIME,
    )


@pytest.mark.timeout(0)  # A failure is shrunk for as long as that takes.
def test_the_store_does_what_its_model_does(redis_client: redis.Redis, run_spec: RunSpec) -> None:
    # The same examples every time, unless one asks for chaos.
    profile = settings(max_examples=50, stateful_step_count=40, derandomize=True)
    if settings.get_current_profile_name() == "chaos":
        profile = settings()
    patient = settings(profile, deadline=None, suppress_health_check=list(HealthCheck))

    class OnThisServer(StoreMachine):
        def __init__(self) -> None:
            super().__init__(redis_client, run_spec)

    run_state_machine_as_test(OnThisServer, settings=patient)
