"""Everything that Redis holds of the jobs, against the model of the store: records, histories, sets, leftovers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import redis

from runner.event_lines import MEASUREMENTS
from runner.jobs import JobState
from tests.runner.store_model import ModelJob, StoreModel

SETS: dict[str, Callable[[Any, str], object]] = {
    **dict.fromkeys(
        ("jobs", "queue", "turns", "leases", "finished", "news"), lambda redis, name: redis.zrange(name, 0, -1)
    ),
    "active": lambda redis, name: redis.smembers(name),
    "seats": lambda redis, name: redis.hkeys(name),
}
"""How to read the keys that hold jobs or submitters, by the first word of their name."""


def compare(client: redis.Redis, model: StoreModel) -> None:
    """Assert that the store is what the model is."""
    jobs = list(model.jobs.values())
    # Read as it lies there: building records of all jobs after every step would take most of the time.
    with client.pipeline(transaction=False) as pipeline:
        for job in jobs:
            pipeline.hgetall(f"qlora:job:{job.id}")
            pipeline.lrange(f"qlora:job:{job.id}:events", 0, -1)
        found: list[Any] = pipeline.execute()
    for job, record, events in zip(jobs, found[::2], found[1::2], strict=True):
        _check_record(job, record)
        _check_history(job, [json.loads(text) for text in events])
    names = keys(client)
    _check_sets(client, model, {name for name in names if name.split(":")[0] in SETS})
    # Nothing is left of a job that is forgotten.
    assert {name.split(":")[1] for name in names if name.startswith("job:")} == set(model.jobs)


def keys(client: redis.Redis) -> list[str]:
    """Names of all keys, without the prefix."""
    names: list[Any] = list(client.scan_iter("qlora:*", count=1000))
    return [str(name).removeprefix("qlora:") for name in names]


def _check_record(job: ModelJob, record: dict[str, str]) -> None:
    assert (record["state"], int(record["attempt"]), record.get("host")) == (job.state, job.attempt, job.host)
    assert (record.get("token"), record.get("stop_requested_by")) == (job.token and str(job.token), job.stop_by)
    assert (record.get("phase"), record.get("checkpoint_step")) == (job.phase, job.step and str(job.step))
    assert ("finished_at" in record) is job.final
    assert [
        (int(loss["token"]), loss.get("returned", False)) for loss in json.loads(record.get("lost_hosts", "[]"))
    ] == [(loss.token, loss.returned) for loss in job.losses]


def _check_history(job: ModelJob, events: list[Any]) -> None:
    """No gap but measurements, of which the newest of each kind is there; never a number twice."""
    told = [(stored["seq"], stored["attempt"], stored["event"]["kind"]) for stored in events]
    assert [one for one in told if one[2] not in MEASUREMENTS] == job.milestones
    assert all(job.history[seq - 1] == (attempt, kind) for seq, attempt, kind in told)
    assert all(one[0] < other[0] for one, other in pairwise(told))
    newest = {kind: seq for seq, (_, kind) in enumerate(job.history, 1) if kind in MEASUREMENTS}
    assert set(newest.values()) <= {seq for seq, _, _ in told}


def _check_sets(client: redis.Redis, model: StoreModel, names: set[str]) -> None:
    expected: dict[str, set[str]] = defaultdict(set)
    for job in model.jobs.values():
        expected[f"jobs:{job.state}"].add(job.id)
        if job.state is JobState.QUEUED:
            expected[f"queue:{job.pool}"].add(job.id)
            expected[f"queue:{job.pool}:{job.who}"].add(job.id)
            expected[f"turns:{job.pool}"].add(job.who)
        if job.active:
            expected[f"active:{job.pool}"].add(job.id)
            expected[f"active:{job.pool}:{job.who}"].add(job.id)
            expected["leases"].add(job.id)
        if job.final:
            expected["finished"].add(job.id)
        else:
            expected[f"seats:{job.pool}"].add(job.who)
        expected["news"].add(job.id)
    assert names == set(expected)
    with client.pipeline(transaction=False) as pipeline:
        for name in expected:
            SETS[name.split(":")[0]](pipeline, f"qlora:{name}")
        found: list[Any] = pipeline.execute()
    assert dict(zip(expected, map(set, found), strict=True)) == expected
