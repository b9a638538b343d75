"""The client against a server that hangs, and the words it finds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.embedded_redis import EmbeddedRedis
from runner.errors import UnavailableError
from runner.redis_client import build_client, redis_at_hand, without_password


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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("rediss://user:se%40cret@host/0", "rediss://user:***@host/0"),
        ("redis://host:1/0", "redis://host:1/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
