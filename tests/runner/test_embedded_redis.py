"""The embedded server: real processes, killed and restarted."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from runner.embedded_redis import EmbeddedRedis, resolve_redis_url
from runner.errors import UnavailableError
from runner.redis_client import build_client
from runner.settings import RunnerSettings, load_settings

Eventually = Callable[..., None]
IsGone = Callable[[int], bool]

SERVE = "import pathlib, sys; from runner.embedded_redis import serve; serve(pathlib.Path(sys.argv[1]))"


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    return dataclasses.replace(load_settings({}), state_dir=tmp_path)


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`serve` in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def server_pid(settings: RunnerSettings) -> int:
    resolve_redis_url(settings)
    return int(json.loads((settings.state_dir / "redis.json").read_text())["pid"])


def put(url: str, value: str) -> None:
    client = build_client(url, decode_responses=True)
    client.set("kept", value)
    client.close()


def get(url: str) -> object:
    client = build_client(url, decode_responses=True)
    value = client.get("kept")
    client.close()
    return value


def test_a_restart_keeps_data_and_address(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        url = server.url
        put(url, "yes")

    with EmbeddedRedis(tmp_path) as server:
        assert server.url == url
        assert get(url) == "yes"


def test_a_port_that_was_taken_meanwhile_costs_the_port_only(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        put(server.url, "yes")
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])

    with socket.create_server(("127.0.0.1", port)), EmbeddedRedis(tmp_path) as server:
        assert f":{port}/" not in server.url
        assert get(server.url) == "yes"


def test_the_address_is_for_the_owner_only_and_goes_with_the_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        place = tmp_path / "redis.json"
        assert json.loads(place.read_text()) == {"url": server.url, "pid": server.pid}
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "redis").stat().st_mode) == 0o700

    assert not place.exists()


def test_nobody_gets_in_without_the_password(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        stranger = build_client("redis://" + server.url.split("@")[1], decode_responses=True, retries=0)

        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]

    assert listening == ["127.0.0.1"]


def test_the_password_is_not_in_the_process_list(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        password = server.url.split(":")[2].split("@")[0]

        assert password not in " ".join(psutil.Process(server.pid).cmdline())


def test_a_second_server_in_the_same_folder_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.embedded_redis.PREDECESSOR_GRACE_S", 0.1)
    with EmbeddedRedis(tmp_path) as server:
        with pytest.raises(UnavailableError) as caught:
            EmbeddedRedis(tmp_path).start()

        assert str(tmp_path / "redis") in caught.value.message
        assert caught.value.hint is not None
        assert get(server.url) is None
        assert (tmp_path / "redis.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_ends_cleanly_on_a_signal(
    foreground: subprocess.Popen[bytes],
    settings: RunnerSettings,
    number: signal.Signals,
    eventually: Eventually,
    is_gone: IsGone,
) -> None:
    pid = server_pid(settings)

    foreground.send_signal(number)

    assert foreground.wait(30) == 0
    eventually(lambda: is_gone(pid))
    assert not (settings.state_dir / "redis.json").exists()


def test_a_killed_owner_leaves_no_server_and_the_next_one_starts(
    foreground: subprocess.Popen[bytes], settings: RunnerSettings, eventually: Eventually, is_gone: IsGone
) -> None:
    pid = server_pid(settings)
    url = resolve_redis_url(settings)
    put(url, "yes")

    foreground.kill()
    foreground.wait()

    with EmbeddedRedis(settings.state_dir) as server:
        assert server.pid != pid
        assert get(server.url) == "yes"
    eventually(lambda: is_gone(pid))


def test_serving_ends_with_an_error_when_the_server_is_gone(
    foreground: subprocess.Popen[bytes], settings: RunnerSettings
) -> None:
    psutil.Process(server_pid(settings)).kill()

    assert foreground.wait(30) != 0
    assert not (settings.state_dir / "redis.json").exists()


def test_a_damaged_file_stops_the_start_and_names_the_log(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        put(server.url, "yes")
    manifest = next((tmp_path / "redis").rglob("*.manifest"))
    manifest.write_text("nonsense\n")

    with pytest.raises(UnavailableError) as caught:
        EmbeddedRedis(tmp_path).start()

    assert caught.value.hint == f"Read {tmp_path / 'redis' / 'valkey.log'}."


# --- resolve_redis_url -----------------------------------------------------------------------------------------------


def test_a_configured_address_is_taken_as_it_is(settings: RunnerSettings) -> None:
    configured = dataclasses.replace(settings, redis_url="rediss://elsewhere:6379/0")

    assert resolve_redis_url(configured) == "rediss://elsewhere:6379/0"


def test_the_embedded_address_is_waited_for(settings: RunnerSettings) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(resolve_redis_url(settings)))
    thread.start()

    with EmbeddedRedis(settings.state_dir) as server:
        thread.join()

        assert found == [server.url]


def test_without_any_redis_the_error_says_what_to_do(settings: RunnerSettings) -> None:
    with pytest.raises(UnavailableError, match="is not there") as caught:
        resolve_redis_url(settings, wait_s=0.1)

    assert "python -m runner redis" in str(caught.value.hint)


def test_an_address_that_somebody_left_behind_is_not_believed(settings: RunnerSettings) -> None:
    place = settings.state_dir / "redis.json"
    place.write_text(json.dumps({"url": "redis://:old@127.0.0.1:1/0", "pid": 1}))

    with pytest.raises(UnavailableError, match="does not answer"):
        resolve_redis_url(settings, wait_s=0.1)
