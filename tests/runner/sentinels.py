"""Valkey processes of a test's own: with any settings; as master, replica and Sentinel."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from runner.embedded_redis import START_TIMEOUT_S, _free_port, _server_binary
from runner.redis_client import build_client

PASSWORD = "a-password-of-the-tests"
MASTER = "jobs"


@dataclass(frozen=True)
class Sentinels:
    """What a test needs to know and to do."""

    url: str
    """Names a Sentinel that is down, then the one that is up."""
    master: subprocess.Popen[bytes]
    replica_port: int

    def replica_is_master(self) -> bool:
        with closing(_plain(self.replica_port)) as client:
            return bool(client.role()[0] == b"master")


@contextmanager
def running_sentinels(folder: Path) -> Iterator[Sentinels]:
    master, replica, sentinel = _free_port(), _free_port(), _free_port()
    data = f"requirepass {PASSWORD}\nmasterauth {PASSWORD}\nappendonly yes\nrepl-diskless-sync-delay 0\n"
    with ExitStack() as stack:
        first = stack.enter_context(running_server(folder / "master", master, data))
        stack.enter_context(running_server(folder / "replica", replica, f"{data}replicaof 127.0.0.1 {master}\n"))
        watch = (
            f"sentinel monitor {MASTER} 127.0.0.1 {master} 1\n"
            f"sentinel auth-pass {MASTER} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
        )
        stack.enter_context(running_server(folder / "sentinel", sentinel, watch, "--sentinel"))
        url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{_free_port()},127.0.0.1:{sentinel}/{MASTER}"
        yield Sentinels(url, first, replica)


@contextmanager
def running_server(folder: Path, port: int, more: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Valkey with settings that the embedded one never has."""
    folder.mkdir(parents=True)
    # A Sentinel writes what it learns into its own file.
    config = folder / "valkey.conf"
    config.write_text(f'bind 127.0.0.1\nport {port}\ndir {folder}\nsave ""\nlogfile log\n{more}')
    with subprocess.Popen([str(_server_binary()), str(config), *options]) as process:
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(port):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def _answers(port: int) -> bool:
    with closing(build_client(f"redis://127.0.0.1:{port}", decode_responses=False, retries=0)) as client:
        try:
            return bool(client.ping())
        except redis.AuthenticationError:  # It answers, which is all we want.
            return True
        except redis.ConnectionError:
            return False


def _plain(port: int) -> redis.Redis:
    return build_client(f"redis://:{PASSWORD}@127.0.0.1:{port}", decode_responses=False)
