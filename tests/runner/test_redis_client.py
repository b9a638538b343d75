"""The client against a server that hangs, and the words it finds."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from runner.embedded_redis import EmbeddedRedis
from runner.errors import UnavailableError
from runner.redis_client import build_client, redis_at_hand
from runner.spec import RunSpec
from runner.store import Store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path) as server:
        yield server


def test_a_server_that_hangs_for_a_while_is_waited_for(server: EmbeddedRedis) -> None:
    client = build_client(server.url, decode_responses=True, timeout_s=0.2)
    client.set("key", "value")
    os.kill(server.pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (server.pid, signal.SIGCONT)).start()

    assert client.get("key") == "value"
    client.close()


def test_a_server_that_hangs_for_good_is_unavailable(server: EmbeddedRedis) -> None:
    client = build_client(server.url, decode_responses=True, timeout_s=0.1, retries=1)
    client.ping()
    os.kill(server.pid, signal.SIGSTOP)

    with pytest.raises(UnavailableError, match="does not answer as it should"), redis_at_hand():
        client.ping()
    os.kill(server.pid, signal.SIGCONT)
    client.close()


def test_a_server_without_memory_is_unavailable(server: EmbeddedRedis) -> None:
    client = build_client(server.url, decode_responses=True)
    client.config_set("maxmemory", "1")

    with pytest.raises(UnavailableError) as caught, redis_at_hand():
        client.set("key", "value")

    assert "memory" in str(caught.value.hint)
    client.close()


def test_a_server_that_refuses_writes_for_want_of_replicas_is_unavailable(server: EmbeddedRedis) -> None:
    client = build_client(server.url, decode_responses=True)
    client.config_set("min-replicas-to-write", "1")

    with pytest.raises(UnavailableError, match="NOREPLICAS"), redis_at_hand():
        client.set("key", "value")
    client.close()


def test_a_reader_who_waits_while_the_server_becomes_a_replica_is_told_that_it_is_unavailable(
    server: EmbeddedRedis,
) -> None:
    client, other = (build_client(server.url, decode_responses=True) for _ in range(2))

    def become_a_replica() -> None:
        while not any(each["cmd"] == "xread" for each in other.client_list()):
            time.sleep(0.01)
        other.replicaof("127.0.0.1", "1")

    thread = threading.Thread(target=become_a_replica)
    thread.start()

    with pytest.raises(UnavailableError, match="UNBLOCKED"), redis_at_hand():
        client.xread({"stream": "0"}, block=5000)
    thread.join()
    client.close()
    other.close()


def test_a_script_that_a_server_forgot_in_the_moment_between_loading_and_calling_it_is_no_mistake_of_ours(
    server: EmbeddedRedis,
) -> None:
    client = build_client(server.url, decode_responses=True)
    sha = client.script_load("return 1")
    client.script_flush()  # As a server that was restarted has.

    with pytest.raises(UnavailableError), redis_at_hand():
        client.evalsha(str(sha), 0)
    client.close()


@pytest.mark.parametrize(
    "refusal",
    [
        "-READONLY You can't write against a read only replica.",
        "-OOM command not allowed when used memory > 'maxmemory'.",
        "-MISCONF Errors writing to the AOF file: No space left on device",
    ],
)
def test_what_redis_6_refuses_inside_a_script_is_unavailable_as_well(refusal: str) -> None:
    with pytest.raises(UnavailableError), redis_at_hand():
        raise redis.ResponseError(f"Error running script (call to f_0a1b): @user_script:57: {refusal}")


def test_a_script_that_fails_by_a_mistake_of_ours_is_no_missing_redis() -> None:
    failure = "Error running script (call to f_0a1b): @user_script:57: -WRONGTYPE Operation against a key"

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), redis_at_hand():
        raise redis.ResponseError(failure)


def test_a_step_of_the_store_that_the_server_refuses_is_unavailable_and_leaves_nothing(
    server: EmbeddedRedis, run_spec: RunSpec
) -> None:
    store = Store.connect(server.url)
    store.client.config_set("min-replicas-to-write", "1")

    with pytest.raises(UnavailableError, match="NOREPLICAS"):
        store.submit(run_spec, submitted_by="U1", origin={}, request_id="r1")

    assert store.client.dbsize() == 0
    store.close()


def test_a_user_without_permission_is_told_so(server: EmbeddedRedis) -> None:
    client = build_client(server.url, decode_responses=True)
    client.acl_setuser("reader", enabled=True, passwords="+local", categories=["+@read"])
    reader = build_client(
        server.url.replace("//:", "//reader:").replace(password_of(server), "local"), decode_responses=True
    )

    with pytest.raises(UnavailableError, match="permission"), redis_at_hand():
        reader.set("key", "value")
    reader.close()
    client.close()


def test_a_mistake_of_ours_is_no_missing_redis(server: EmbeddedRedis) -> None:
    client = build_client(server.url, decode_responses=True)
    client.set("key", "value")

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), redis_at_hand():
        client.lpush("key", "value")
    client.close()


def password_of(server: EmbeddedRedis) -> str:
    password = urlsplit(server.url).password
    assert password is not None
    return password
