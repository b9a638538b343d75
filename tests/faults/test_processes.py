"""Processes that are killed, stopped, put to sleep and restarted: nothing lost, doubled or stopped."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from runner.jobs import JobState
from runner.spec import RunSpec
from tests.faults.chaos.attack import Attack
from tests.faults.chaos.slack_side import SlackSide, judge_threads
from tests.faults.fleet import Fleet, running_fleet, scripted_spec, wait_until
from tests.faults.invariants import judge
from tests.faults.line import FaultyLine, port_of

pytestmark = pytest.mark.timeout(600)

HOSTS = ["host-1", "host-2", "host-3"]
LEASE_S = 6.0


@pytest.fixture(scope="module")
def whole_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), HOSTS, lease_s=LEASE_S) as fleet:
        yield fleet


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Iterator[Fleet]:
    """Three workers; whatever a test does to them, the invariants hold over all that ever happened."""
    yield whole_fleet
    whole_fleet.wait_for_ends()
    assert judge(whole_fleet).all == []


def test_a_worker_that_wakes_up_after_another_took_over_publishes_nothing(fleet: Fleet, run_spec: RunSpec) -> None:
    # It is put to sleep in mid-training; its child goes on, and has its adapter before the worker wakes up.
    job_id = fleet.submit(scripted_spec(run_spec, steps=200))
    fleet.wait_for(job_id, "checkpoint_saved")
    first = fleet.job(job_id).host
    assert first is not None

    with fleet.paused(first):
        wait_until(lambda: fleet.job(job_id).is_final, "another one runs the job to its end")

    assert (fleet.job(job_id).state, fleet.job(job_id).attempt) == (JobState.SUCCEEDED, 2)
    assert fleet.job(job_id).host != first
    wait_until(lambda: fleet.is_idle(first), "the worker has noticed, and is ready for other work")


def test_a_rolling_restart_under_load_costs_no_attempt_anything(fleet: Fleet, run_spec: RunSpec) -> None:
    jobs = [fleet.submit(scripted_spec(run_spec, steps=150)) for _ in range(7)]
    for name in HOSTS:
        wait_until(lambda name=name: not fleet.is_idle(name), f"{name} has work")  # type: ignore[misc]
        fleet.terminate(name)
        fleet.start(name)
    fleet.wait_for_ends()

    assert Counter(fleet.states()[-len(jobs) :]) == {JobState.SUCCEEDED: len(jobs)}
    given_back = [event for job_id in jobs for event in fleet.events(job_id) if event.kind == "job_requeued"]
    assert {event.reason for event in given_back} == {"worker-stopped"}
    resumed = [event for job_id in jobs for event in fleet.events(job_id) if event.kind == "training_started"]
    assert sum(event.resumed_from_step > 0 for event in resumed) == len(given_back) > 0
    assert not any(fleet.job(job_id).lost_hosts for job_id in jobs)


def test_the_judge_notices_a_stop_without_a_reason_and_an_event_that_is_gone(fleet: Fleet, run_spec: RunSpec) -> None:
    long, short = (fleet.submit(scripted_spec(run_spec, steps=steps)) for steps in (400, 20))
    fleet.wait_for(long, "checkpoint_saved")
    host = fleet.job(long).host
    assert host is not None
    worker = fleet.hosts[host].pid
    fleet.terminate(host)
    fleet.start(host)
    fleet.wait_for_ends()
    assert judge(fleet).all == []

    reason_unknown = judge(replace(fleet, faults=[]))
    assert f"{long}/attempt-1 was asked to stop (worker {worker})" in reason_unknown.stopped

    record, history = f"qlora:job:{short}", f"qlora:job:{short}:events"
    first: Any = fleet.store.client.lpop(history)
    fleet.store.client.hincrby(record, "thinned", 1)  # So the numbers of the others stay as they are.
    try:
        assert f"{short}: events [1] are missing" in judge(fleet).disordered
    finally:
        fleet.store.client.lpush(history, first)
        fleet.store.client.hincrby(record, "thinned", -1)


def test_a_thousand_queued_jobs_are_cancelled_at_once(fleet: Fleet, run_spec: RunSpec) -> None:
    spec = scripted_spec(run_spec, steps=20)
    with ThreadPoolExecutor(8) as requesters:
        jobs = list(requesters.map(lambda number: fleet.submit(spec, by=f"U{number % 7}"), range(1000)))
        list(requesters.map(fleet.stop, jobs))

    fleet.wait_for_ends()
    ended = Counter(fleet.job(job_id).state for job_id in jobs)
    assert ended[JobState.CANCELLED] + ended[JobState.SUCCEEDED] == 1000
    assert ended[JobState.CANCELLED] > 900
    assert fleet.store.queue_lengths() == {"cpu": 0}
    after = fleet.submit(spec)
    wait_until(lambda: fleet.job(after).state is JobState.SUCCEEDED, "the next job runs")


def test_ten_kills_at_random_moments_lose_and_double_nothing(fleet: Fleet, run_spec: RunSpec) -> None:
    chance = random.Random(10)  # noqa: S311 - it draws moments, no secrets
    with FaultyLine(port_of(fleet.server.url)) as line, SlackSide(fleet, line) as slack:
        attack = Attack(fleet, slack, chance)
        slack.type()
        for kind in ["child", "worker", "bot", "valkey", "worker", "valkey", "child", "valkey", "worker", "bot"]:
            while len(fleet.open_attempts()) < len(HOSTS) - 1:
                fleet.submit(scripted_spec(run_spec, steps=chance.randint(20, 200)))
                wait_until(lambda: fleet.queued() == 0, "every job has a worker")
            time.sleep(chance.uniform(0.0, 0.5))  # The random moment.
            attack.kill(kind)
        fleet.wait_for_ends()
        typed = [fleet.job(job_id) for job_id in slack.told]
        slack.wait_until_told(typed)

        assert (len(attack.done), len(typed)) == (10, 1)
        assert judge_threads(slack, typed, slack.told) == []
