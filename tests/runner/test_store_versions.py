"""Two versions of this software at once: records of an older one are read, those of a newer one are left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner import store as store_module
from runner import store_records, store_scripts
from runner.errors import UnavailableError
from runner.job_events import JobSucceeded
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.spec import RunSpec
from runner.store import Store
from runner.store_records import SCHEMA_VERSION
from tests.examples import SUMMARY

Submit = Callable[..., JobRecord]
RECORDS = Path(__file__).parent / "records"


@contextmanager
def newer_version(store: Store) -> Iterator[Store]:
    """A process of the next version, whose records this one could misread."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (store_module, store_records, store_scripts):
            patch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        yield Store(store.client, lease_s=store.lease_s)


def everything(store: Store) -> dict[Any, Any]:
    return {name: store.client.dump(name) for name in store.client.scan_iter()}


@pytest.fixture
def newer_job(store: Store, submit_job: Submit) -> JobRecord:
    """A job that the next version has submitted, with something in it that this one knows nothing of."""
    with newer_version(store):
        job = submit_job(request_id="newer")
    spec = json.loads(str(store.client.hget(f"qlora:job:{job.id}", "spec")))
    spec["project"]["a_setting_of_the_future"] = 1
    store.client.hset(f"qlora:job:{job.id}", "spec", json.dumps(spec))
    return job


def test_an_older_worker_leaves_a_newer_job_queued_and_says_so(
    store: Store, newer_job: JobRecord, some_worker: WorkerInfo, caplog: pytest.LogCaptureFixture
) -> None:
    before = everything(store)

    assert store.claim(some_worker.pool, some_worker) is None

    assert everything(store) == before
    assert f"Job {newer_job.id} was written by a newer version" in caplog.text
    assert "Update this process" in caplog.text


def test_an_older_worker_takes_the_older_jobs_behind_a_newer_one(
    store: Store, newer_job: JobRecord, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    older = [submit_job(), submit_job(submitted_by="U2")]

    claims = [store.claim(some_worker.pool, some_worker) for _ in range(3)]

    assert {claim.job.id for claim in claims if claim} == {job.id for job in older}
    assert store.client.hget(f"qlora:job:{newer_job.id}", "state") == "queued"


def test_a_newer_worker_takes_the_jobs_of_both_versions(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    older = submit_job()
    with newer_version(store) as newer:
        job = submit_job()
        claims = [newer.claim(some_worker.pool, some_worker) for _ in range(2)]

    assert [claim and claim.job.id for claim in claims] == [older.id, job.id]


def test_an_older_process_neither_stops_a_newer_job_nor_calls_it_dead(
    store: Store, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    with newer_version(store) as newer:
        job = submit_job()
        assert newer.claim(some_worker.pool, some_worker) is not None
    store.client.zadd("qlora:leases", {job.id: 1})
    before = everything(store)

    with pytest.raises(UnavailableError, match=f"{job.id} was written by a newer version"):
        store.request_stop(job.id, "U2")
    assert store.expire_leases() == []

    assert everything(store) == before
    with newer_version(store) as newer:
        assert [(lost.id, lost.state) for lost in newer.expire_leases()] == [(job.id, JobState.QUEUED)]


def test_a_newer_job_hides_no_other_one_in_a_list(
    store: Store, submit_job: Submit, newer_job: JobRecord, caplog: pytest.LogCaptureFixture
) -> None:
    job = submit_job()

    assert (store.jobs(), store.queued(job.pool)) == ([job], [job])

    assert caplog.text.count(f"Job {newer_job.id} was written by a newer version") == 1


@pytest.mark.parametrize("file", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_job_that_an_older_version_has_queued_runs_to_its_end(
    store: Store, some_worker: WorkerInfo, file: Path
) -> None:
    written = json.loads(file.read_text(encoding="utf-8"))
    store.client.hset("qlora:job:demo-aaaaa", mapping=written["record"])
    store.client.rpush("qlora:job:demo-aaaaa:events", *written["events"])
    for key in ("qlora:jobs:queued", "qlora:queue:cpu", "qlora:queue:cpu:U1", "qlora:turns:cpu"):
        store.client.zadd(key, {"U1" if key == "qlora:turns:cpu" else "demo-aaaaa": 1})
    store.client.hset("qlora:seats:cpu", "U1", 1)
    store.client.sadd("qlora:pools", "cpu")

    claim = store.claim("cpu", some_worker)
    assert claim is not None
    ended = store.finish(claim, JobSucceeded(summary=SUMMARY, adapter_path="/out/adapter"))

    assert (ended.id, ended.state, ended.spec.project.name) == ("demo-aaaaa", JobState.SUCCEEDED, "demo")
    assert ended.spec.project.lora.r == 8
    assert [stored.event.kind for stored in store.events(ended.id)] == ["job_queued", "job_claimed", "job_succeeded"]


def setting_names(spec: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in spec.items():
        yield f"{above}{name}"
        if isinstance(value, dict):
            yield from setting_names(value, f"{above}{name}.")


def test_a_specification_holds_what_the_newest_written_record_holds() -> None:
    """A setting more or less: raise `SCHEMA_VERSION`, and keep a record of that version beside the others."""
    written = json.loads((RECORDS / f"job-v{SCHEMA_VERSION}.json").read_text(encoding="utf-8"))["record"]

    read_again = json.loads(RunSpec.model_validate_json(written["spec"]).model_dump_json())

    assert sorted(setting_names(json.loads(written["spec"]))) == sorted(setting_names(read_again))
