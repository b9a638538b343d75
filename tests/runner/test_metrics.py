"""What Prometheus reads about real jobs, over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime

import pytest

from runner.__main__ import main
from runner.cli.metrics import DEFAULT
from runner.embedded_redis import EmbeddedRedis, _free_port
from runner.job_events import JobFailed
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.settings import Retention
from runner.store import Store

Submit = Callable[..., JobRecord]
Eventually = Callable[..., None]
Samples = dict[str, dict[str, float]]
Scrape = Callable[[], Samples]
BODY = """
if not list(RUN_DIR.parents[1].glob("*/adapter")):
    succeed()
emit("metrics_logged", step=30, total_steps=120, epoch=1.0, loss=1.0, learning_rate=0.1, tokens_per_s=1234.5, eta_s=1.0,
     peak_bytes=8_000_000_000)
while not STOPPING:
    time.sleep(0.02)
checkpoint(30)
emit("run_interrupted", step=30, checkpoint=str(RUN_DIR / "checkpoints" / "checkpoint-30"))
sys.exit(3)
"""


@contextmanager
def serving(url: str) -> Iterator[Scrape]:
    """Metrics as an operator starts them; scrapes give each sample by name and its labels' values, in their order."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - beside its only user

    port = _free_port()
    command = [sys.executable, "-m", "runner", "metrics", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env=os.environ | {"REDIS_URL": url}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"http://127.0.0.1:{port}/metrics" in process.stderr.readline()

        def scrape() -> Samples:
            found: Samples = {}
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    assert family.documentation, family.name
                    for sample in family.samples:
                        found.setdefault(sample.name, {})[" ".join(sample.labels.values())] = sample.value
            return found

        yield scrape
        process.terminate()
        assert process.wait(20) == 0


def test_a_scrape_tells_of_queues_attempts_workers_and_sums_after_real_jobs(
    store: Store,
    valkey_url: str,
    submit_job: Submit,
    working: Callable[[str, str], AbstractContextManager[None]],
    eventually: Eventually,
) -> None:
    moment = datetime.now(UTC)
    other = {"name": "b:1", "host": "host-b", "pool": "cpu", "device": "cpu", "stack": "current"}
    store.announce(WorkerInfo.model_validate(other | {"started_at": moment, "last_seen_at": moment}))
    store.drain("host-b", "ann")
    jobs = [submit_job() for _ in range(3)]

    with working(valkey_url, BODY), serving(valkey_url) as scrape:
        eventually(lambda: "metrics_logged" in [stored.event.kind for stored in store.events(jobs[1].id)])
        found = scrape()
        assert store.get(jobs[0].id).state is JobState.SUCCEEDED
        store.request_stop(jobs[2].id, "U2")
        store.request_stop(jobs[1].id, "U2")
        eventually(lambda: store.get(jobs[1].id).is_final)
        later = scrape()

    running = f"host-a {jobs[1].id} cpu"
    assert found["qlora_redis_up"] == {"": 1}
    assert found["qlora_jobs"] == {"cpu queued": 1, "cpu running": 1, "cpu stopping": 0}
    assert 0 < found["qlora_queue_oldest_age_seconds"]["cpu"] < 600
    assert 0 <= found["qlora_lease_age_seconds"][running] < 60
    assert found["qlora_tokens_per_second"] == {running: 1234.5}
    assert found["qlora_memory_peak_bytes"] == {running: 8e9}
    assert found["qlora_progress_ratio"] == {running: 0.25}
    workers = {labels: count for labels, count in found["qlora_workers"].items() if count}
    assert workers == {"cpu working": 1, "cpu drained": 1}
    assert (found["qlora_frozen"], found["qlora_hosts_drained"]) == ({"": 0}, {"": 1})
    assert found["qlora_jobs_submitted_total"] == {"cpu": 3}
    assert (found["qlora_attempts_total"], found["qlora_child_restarts_total"]) == ({"cpu": 2}, {"cpu": 0})
    assert later["qlora_jobs_finished_total"] == {" cpu succeeded": 1, " cpu cancelled": 2}
    assert later["qlora_jobs"] == {"cpu queued": 0, "cpu running": 0, "cpu stopping": 0}
    assert "qlora_tokens_per_second" not in later


def test_recoveries_failures_and_memory_are_counted_with_their_reasons(
    store: Store, valkey_url: str, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    submit_job()
    for ends in ("lost", "given back", "failed"):
        claim = store.claim("cpu", some_worker)
        assert claim is not None
        if ends == "lost":
            store.client.zadd("qlora:leases", {claim.job.id: 1})
            store.expire_leases()
        elif ends == "given back":
            store.requeue(claim)
        else:
            store.finish(claim, JobFailed(code="out-of-memory", message="m"))
    Store(store.client, retention=Retention(days=0)).forget()
    assert store.jobs() == []

    with serving(valkey_url) as scrape:
        found = scrape()

    assert found["qlora_recoveries_total"] == {"cpu host-lost": 1, "cpu worker-stopped": 1}
    assert found["qlora_jobs_finished_total"] == {"out-of-memory cpu failed": 1}
    assert (found["qlora_attempts_total"], found["qlora_child_restarts_total"]) == ({"cpu": 3}, {"cpu": 2})


def test_a_scrape_costs_as_much_after_many_jobs_as_after_few(
    store: Store, valkey_url: str, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    costs = []
    with serving(valkey_url) as scrape:
        for jobs in (2, 40):
            for _ in range(jobs):
                submit_job()
                claim = store.claim("cpu", some_worker)
                assert claim is not None
                store.finish(claim, JobFailed(code="dataset", message="m"))
            scrape()  # The first one also connects and loads its script.
            before = commands(store)
            scrape()
            costs.append(commands(store) - before)

    assert costs[0] == costs[1]


def commands(store: Store) -> int:
    """Commands that the server has carried out, those inside scripts included; asking for it is one more."""
    return sum(int(one["calls"]) for one in store.client.info("commandstats").values())


def test_metrics_go_on_while_redis_is_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    with EmbeddedRedis(tmp_path_factory.mktemp("own")) as server, serving(server.url) as scrape:
        assert scrape()["qlora_redis_up"] == {"": 1}
        server.stop()
        assert scrape() == {"qlora_redis_up": {"": 0}}
        server.start()
        assert scrape()["qlora_redis_up"] == {"": 1}


def test_nobody_but_this_machine_can_scrape_unless_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert DEFAULT.startswith("127.0.0.1:")
    assert main(["metrics", "--listen", "9464"]) == 2
    assert DEFAULT in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken = valkey_url.rpartition(":")[2].partition("/")[0]
    done = subprocess.run(
        [sys.executable, "-m", "runner", "metrics", "--listen", f"127.0.0.1:{taken}"],
        env=os.environ | {"REDIS_URL": valkey_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert capsys.readouterr().err == ""
    assert done.returncode == 1
    assert f"127.0.0.1:{taken}: Address already in use" in done.stderr
