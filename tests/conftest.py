"""Fixtures for every test: a scrubbed environment, and a real Valkey for whoever asks for it.

Imports nothing but pytest and the standard library at the top: the training tests also run where Redis' client is not
installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import redis
    from dramatiq.brokers.redis import RedisBroker

    from runner.jobs import JobRecord, WorkerInfo
    from runner.spec import RunSpec
    from runner.store import Store


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name == "REDIS_URL" or name.startswith(("QLORA_", "SLACK_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one real server for all tests; `redis_client` empties it."""
    from runner.embedded_redis import EmbeddedRedis  # noqa: PLC0415 - see the module's docstring

    with EmbeddedRedis(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def redis_client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client that speaks text, on an empty server."""
    from runner.redis_client import build_client  # noqa: PLC0415 - see the module's docstring

    client = build_client(valkey_url, decode_responses=True)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def store(redis_client: redis.Redis) -> Store:
    """An empty store whose leases outlast every test."""
    from runner.store import Store  # noqa: PLC0415 - see the module's docstring

    return Store(redis_client, lease_s=120.0)


@pytest.fixture
def broker(redis_client: redis.Redis, valkey_url: str) -> Iterator[RedisBroker]:
    """A broker beside `store`, on the same empty server."""
    from runner.queue import build_broker  # noqa: PLC0415 - see the module's docstring

    assert redis_client.ping()
    broker = build_broker(valkey_url)
    yield broker
    broker.close()
    broker.client.close()


@pytest.fixture(scope="session")
def run_spec() -> RunSpec:
    """A small valid snapshot of a project called `demo`, for pool `cpu`."""
    from runner.spec import Compute, DatasetShare, ProjectSpec, RunSpec, Trait  # noqa: PLC0415 - as above

    project = ProjectSpec(
        name="demo",
        base_model="tiny-llama",
        output_directory="demo",
        traits=(Trait(trait_type="arithmetic", datasets=(DatasetShare(dataset_id=1),)),),
        compute=Compute(pool="cpu"),
    )
    return RunSpec(project=project, datasets={})


@pytest.fixture
def submit_job(store: Store, run_spec: RunSpec) -> Callable[..., JobRecord]:
    """Submit `run_spec`, each call a new request; keyword arguments go to `Store.submit`."""
    requests = count(1)

    def submit(**more: Any) -> JobRecord:
        wish = {"submitted_by": "U1", "origin": {"channel": "C1"}, "request_id": f"request-{next(requests)}"}
        return store.submit(run_spec, **(wish | more))

    return submit


@pytest.fixture
def some_worker(run_spec: RunSpec) -> WorkerInfo:
    """A worker of the pool that `run_spec` asks for."""
    from runner.jobs import WorkerInfo  # noqa: PLC0415 - see the module's docstring

    now = datetime.now(UTC)
    return WorkerInfo(
        name="host-a:1",
        host="host-a",
        pool=run_spec.project.compute.pool,
        device="cpu (2 threads)",
        stack="current",
        started_at=now,
        last_seen_at=now,
    )
