"""Jobs through every kind of address: TLS, a user with few rights, Sentinels whose master dies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from redis.exceptions import NoPermissionError

from bot.delivery import DeliveryStore
from runner.embedded_redis import EmbeddedRedis, _free_port
from runner.errors import UnavailableError
from runner.jobs import JobState
from runner.queue import build_broker, issue_ticket
from runner.redis_client import build_client, redis_at_hand
from runner.redis_server import what_could_lose_jobs
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.store import Store
from tests.runner.sentinels import running_sentinels, running_server
from tests.runner.tls_proxy import CERTIFICATES, tls_in_front_of

Eventually = Callable[..., None]
Working = Callable[[str, str], AbstractContextManager[None]]
PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
WAITING = "metrics(1)\nwhile not (RUN_DIR.parents[2] / 'go').exists():\n    time.sleep(0.02)\nmetrics(2)\nsucceed()"


@contextmanager
def requesting(url: str) -> Iterator[tuple[Store, Callable[[RunSpec], str]]]:
    """The bot's side: the store, and a way to submit a job and call a worker."""
    store, broker = Store.connect(url), build_broker(url)

    def submit(spec: RunSpec) -> str:
        job = store.submit(spec, submitted_by="U1", origin={}, request_id=f"r{store.count(JobState)}")
        issue_ticket(broker, job.pool)
        return job.id

    yield store, submit
    broker.close()
    broker.client.close()
    store.close()


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_a_job_runs_over_tls(
    valkey_url: str, redis_client: redis.Redis, working: Working, run_spec: RunSpec, eventually: Eventually
) -> None:
    assert redis_client.dbsize() == 0
    plain = urlsplit(valkey_url)
    assert plain.port is not None
    with tls_in_front_of(plain.port) as port:
        url = f"rediss://:{plain.password}@localhost:{port}/0?ssl_ca_certs={CERTIFICATES / 'ca.pem'}"
        with requesting(url) as (store, submit), working(url, "succeed()"):
            job_id = submit(run_spec)
            eventually(lambda: store.get(job_id).state is JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("place", "options", "hint"),
    [
        ("localhost", "", "ssl_ca_certs=/path/to/ca.pem"),
        ("127.0.0.1", f"?ssl_ca_certs={CERTIFICATES / 'ca.pem'}", "ssl_ca_certs=/path/to/ca.pem"),
    ],
    ids=["signed by nobody we know", "somebody else's certificate"],
)
def test_a_server_that_cannot_show_who_it_is_gets_no_password(
    valkey_url: str, place: str, options: str, hint: str
) -> None:
    plain = urlsplit(valkey_url)
    assert plain.port is not None
    with tls_in_front_of(plain.port) as port:
        url = f"rediss://:{plain.password}@{place}:{port}/0{options}"
        client = build_client(url, decode_responses=True, retries=0)
        with pytest.raises(UnavailableError, match="certificate verify failed") as caught, redis_at_hand():
            client.ping()
        client.close()

    assert hint in str(caught.value.hint)
    assert str(plain.password) not in str(caught.value)


# --- users -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def users(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The users that the documentation sets up, on a server of their own; the address of each."""
    commands = re.findall(r"^ACL SETUSER (\S+) (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    with EmbeddedRedis(tmp_path / "own") as server:
        admin = build_client(server.url, decode_responses=True)
        for name, rules in commands:
            admin.execute_command(  # type: ignore[no-untyped-call]
                "ACL", "SETUSER", name, *rules.replace(">…", f">{name}-secret").split()
            )
        admin.close()
        port = urlsplit(server.url).port
        yield {name: f"redis://{name}:{name}-secret@127.0.0.1:{port}/0" for name, _ in commands}


def test_a_job_runs_with_the_rights_that_the_documentation_gives_to_bot_and_worker(
    users: dict[str, str],
    settings: RunnerSettings,
    working: Working,
    run_spec: RunSpec,
    eventually: Eventually,
) -> None:
    with requesting(users["qlora-bot"]) as (store, submit):
        store.freeze("a look", "ann")
        store.unfreeze()
        memory = DeliveryStore(store.client)
        assert memory.hold("bot", 10.0)
        with working(users["qlora-worker"], WAITING):
            first, second, third = (submit(run_spec) for _ in range(3))
            memory.remember_root(first, "C1", "1.0")
            eventually(lambda: "metrics_logged" in [stored.event.kind for stored in store.events(first)])
            store.request_stop(second, "U1")
            (settings.output_root / "go").touch()
            eventually(lambda: store.get(third).state is JobState.SUCCEEDED)

    log = build_client(users["qlora-bot"], decode_responses=True)
    with pytest.raises(UnavailableError, match="permission") as caught, redis_at_hand():
        log.flushall()
    assert "docs/operations.md" in str(caught.value.hint)
    log.close()


def test_a_worker_can_touch_nothing_but_the_jobs(users: dict[str, str]) -> None:
    worker = build_client(users["qlora-worker"], decode_responses=True)
    for call in (
        lambda: worker.set("qlora:slack:reporter", "me"),
        lambda: worker.get("qlora:slack:job:demo-aaaaa"),
        lambda: worker.set("somebody:elses", "1"),
        lambda: worker.config_get("requirepass"),
        worker.acl_users,
        worker.register_script("return redis.call('GET', 'somebody:elses')"),
    ):
        with pytest.raises((NoPermissionError, redis.ResponseError), match=r"permission|ACL failure"):
            call()
    worker.close()


# --- Sentinels -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_jobs_go_on_when_the_master_dies_and_the_sentinels_name_another(
    tmp_path: Path, settings: RunnerSettings, working: Working, run_spec: RunSpec, eventually: Eventually
) -> None:
    with (
        running_sentinels(tmp_path / "sentinels") as sentinels,
        requesting(sentinels.url) as (store, submit),
        working(sentinels.url, WAITING),
    ):
        running = submit(run_spec)
        eventually(lambda: "metrics_logged" in [stored.event.kind for stored in store.events(running)])
        assert store.client.wait(1, 10_000) == 1

        sentinels.master.kill()
        eventually(sentinels.replica_is_master, within_s=60)
        (settings.output_root / "go").touch()
        later = submit(run_spec)

        eventually(lambda: store.get(later).state is JobState.SUCCEEDED, within_s=60)
        jobs = [store.get(job_id) for job_id in (running, later)]
        assert [(job.state, job.attempt) for job in jobs] == [(JobState.SUCCEEDED, 1)] * 2


# --- servers that jobs should not be kept on -------------------------------------------------------------------------


def test_a_server_of_a_cluster_is_refused_by_name(tmp_path: Path) -> None:
    port = _free_port()
    with (
        running_server(tmp_path / "cluster", port, f"cluster-enabled yes\ncluster-port {_free_port()}\n"),
        pytest.raises(UnavailableError, match="REDIS_URL names a server of a Redis Cluster"),
    ):
        Store.connect(f"redis://127.0.0.1:{port}")


def test_settings_with_which_a_server_can_lose_jobs_are_named(tmp_path: Path, redis_client: redis.Redis) -> None:
    assert what_could_lose_jobs(redis_client) == []

    port = _free_port()
    with running_server(tmp_path / "own", port, "maxmemory 100mb\nmaxmemory-policy allkeys-lru\n"):
        client = build_client(f"redis://127.0.0.1:{port}", decode_responses=True)
        persistence, eviction = what_could_lose_jobs(client)
        client.close()

    assert "`appendonly no`" in persistence
    assert "`maxmemory-policy allkeys-lru`" in eviction
