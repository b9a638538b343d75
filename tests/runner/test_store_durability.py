"""What the store has answered stands after a kill -9 of Redis."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from runner.embedded_redis import EmbeddedRedis
from runner.jobs import JobState, WorkerInfo
from runner.spec import RunSpec
from runner.store import Store


def test_the_stop_of_a_queued_job_outlives_redis(tmp_path: Path, run_spec: RunSpec, some_worker: WorkerInfo) -> None:
    with EmbeddedRedis(tmp_path) as server:
        store = Store.connect(server.url)
        job_id = store.submit(run_spec, submitted_by="UANN", origin={}, request_id="r1").id

        store.request_stop(job_id, "UBOB")
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()

        assert store.get(job_id).state is JobState.CANCELLED
        assert store.claim(run_spec.project.compute.pool, some_worker) is None
        assert [stored.event.kind for stored in store.events(job_id)] == ["job_queued", "job_cancelled"]
        store.close()
