"""Lines that lose replies, a Valkey that is away, and hosts that are cut off: nothing lost, doubled or stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.jobs import JobState
from runner.spec import RunSpec
from tests.faults.fleet import HERE, Fleet, running_fleet, scripted_spec, wait_until
from tests.faults.invariants import judge

pytestmark = pytest.mark.timeout(600)

HOSTS = ["host-1", "host-2", "host-3"]
LEASE_S = 8.0
WORDS = {
    **{word: f"${len(word)}\r\n{word}\r\n".encode() for word in ("enqueue", "fetch", "ack")},  # Dramatiq's own
    "append": b"phase_started",  # a milestone, because a measurement told twice may be thinned out at the end
}
"""What stands in requests of that kind and in no others."""


@pytest.fixture(scope="module")
def whole_fleet(tmp_path_factory: pytest.TempPathFactory, run_spec: RunSpec) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), HOSTS, lease_s=LEASE_S) as fleet:
        # From here on the server knows every script: a lost reply is one to a step that was carried out.
        fleet.submit(scripted_spec(run_spec, steps=20))
        fleet.wait_for_ends()
        yield fleet


@pytest.fixture
def fleet(whole_fleet: Fleet) -> Iterator[Fleet]:
    """Three workers; whatever a test does to them, the invariants hold over all that ever happened."""
    yield whole_fleet
    whole_fleet.wait_for_ends()
    assert judge(whole_fleet).all == []


@pytest.mark.parametrize("what", ["submit", "enqueue", "fetch", "claim", "renew", "append", "finish", "ack"])
def test_a_lost_reply_costs_a_job_nothing(fleet: Fleet, run_spec: RunSpec, what: str) -> None:
    lines = [fleet.line, *(host.line for host in fleet.hosts.values())]
    before = [line.lost_replies for line in lines]
    for line in lines:
        line.lose_reply(WORDS.get(what) or fleet.request_of(what))

    job_id = fleet.submit(scripted_spec(run_spec, steps=20))
    wait_until(lambda: [line.lost_replies for line in lines] != before, f"a reply to {what} is lost")
    wait_until(lambda: fleet.job(job_id).is_final, "the job's end")
    for line in lines:
        line.lose_no_more()

    assert (fleet.job(job_id).state, fleet.job(job_id).attempt) == (JobState.SUCCEEDED, 1)


def test_trainings_go_on_while_valkey_is_killed_and_away_for_three_leases(fleet: Fleet, run_spec: RunSpec) -> None:
    # The first ends long before Valkey is back, the second at about that time, the third after it.
    jobs = [fleet.submit(scripted_spec(run_spec, steps=steps)) for steps in (60, 500, 900)]
    for job_id in jobs:
        fleet.wait_for(job_id, "metrics_logged")

    last = fleet.job(jobs[-1]).host
    assert last is not None
    fleet.kill_valkey()
    fleet.hosts[last].line.cut()
    time.sleep(3 * LEASE_S)  # How long it is away is what is tried here.
    fleet.revive_valkey()
    # One host comes back after another has looked for lost ones: it has as much time for that as a lease has.
    looked = fleet.looked_for_lost_hosts()
    wait_until(lambda: fleet.looked_for_lost_hosts() != looked, "somebody looks for lost hosts")
    fleet.hosts[last].line.mend()

    fleet.wait_for_ends()
    assert {(fleet.job(job_id).state, fleet.job(job_id).attempt) for job_id in jobs} == {(JobState.SUCCEEDED, 1)}


def test_a_read_only_replica_is_waited_out(fleet: Fleet, run_spec: RunSpec) -> None:
    running = fleet.submit(scripted_spec(run_spec, steps=30))
    fleet.wait_for(running, "training_started")

    with fleet.read_only():
        wait_until(lambda: not fleet.open_attempts(), "the training ends while nothing can be written")
        time.sleep(LEASE_S)

    queued = fleet.submit(scripted_spec(run_spec, steps=10))
    fleet.wait_for_ends()
    assert [fleet.job(job_id).attempt for job_id in (running, queued)] == [1, 1]


def test_a_host_that_is_cut_off_for_longer_than_its_lease_leaves_its_job_to_another(
    fleet: Fleet, run_spec: RunSpec
) -> None:
    job_id = fleet.submit(scripted_spec(run_spec, steps=400))
    fleet.wait_for(job_id, "checkpoint_saved")
    first = fleet.job(job_id).host
    assert first is not None

    with fleet.cut_off(first):
        fleet.wait_for(job_id, "job_claimed", times=2)

    fleet.wait_for_ends()
    assert (fleet.job(job_id).attempt, fleet.job(job_id).lost_hosts[0].host) == (2, first)
    assert fleet.job(job_id).host != first
    resumed = [
        each.event.resumed_from_step for each in fleet.store.events(job_id) if each.event.kind == "training_started"
    ]
    assert resumed[1] > 0


def test_a_slow_and_stuttering_line_is_no_reason_to_call_a_host_dead(fleet: Fleet, run_spec: RunSpec) -> None:
    jobs = [fleet.submit(scripted_spec(run_spec, steps=150)) for _ in HOSTS]
    for job_id in jobs:
        fleet.wait_for(job_id, "training_started")
    lines = [host.line for host in fleet.hosts.values()]

    lines[0].slow_down(0.3)
    lines[1].fall_silent()
    lines[2].cut()
    time.sleep(LEASE_S / 3)
    for line in lines:
        line.mend()

    fleet.wait_for_ends()
    assert [fleet.job(job_id).attempt for job_id in jobs] == [1, 1, 1]


@pytest.mark.parametrize("days", [-1, 1])
def test_a_host_whose_clock_is_a_day_off_works_with_the_others(tmp_path: Path, run_spec: RunSpec, days: int) -> None:
    skew = {"PYTHONPATH": str(HERE / "skewed_clock"), "SKEW_S": str(days * 86_400)}
    with running_fleet(tmp_path, HOSTS[:2], lease_s=LEASE_S, environs={"host-1": skew}) as fleet:
        for _ in range(6):
            fleet.submit(scripted_spec(run_spec, steps=40))
        fleet.wait_for_ends()

        assert {fleet.job(job_id).host for job_id in fleet.accepted} == set(HOSTS[:2])
        assert {(fleet.job(job_id).state, fleet.job(job_id).attempt) for job_id in fleet.accepted} == {
            (JobState.SUCCEEDED, 1)
        }
        assert judge(fleet).all == []
