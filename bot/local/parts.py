"""Starts the parts of the product as processes of their own and stops every one of them again."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runner.errors import UnavailableError
from runner.settings import RunnerSettings

STOP_S = 20.0
"""Seconds a part has to stop after SIGTERM; a worker in mid-training writes a checkpoint in that time."""
LOG_LINES = 20
"""Last lines of a part's log shown when it dies."""

PARTS: dict[str, tuple[str, ...]] = {
    "redis": ("runner", "redis"),
    "workspace": ("bot.workspace",),
    "bot": ("bot",),
    # Without a canary: on the cores that it would take the first job trains already, on the very same tiny model.
    "runner": ("runner", "worker", "--pool", "local", "--no-canary"),
}
"""Module and arguments of each part, in the order they are started; they are stopped in the opposite one."""

ADDRESS_FILES = ("redis.json", "workspace.json")
"""Where redis and the workspace write their addresses, in the state folder."""

_PR_SET_PDEATHSIG = 1


def _end_with_the_launcher() -> None:
    """Ask Linux to end the part when the launcher is killed before it could do so itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Part:
    """A running part."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@contextlib.contextmanager
def _sole_owner(state_dir: Path) -> Iterator[None]:
    """Hold the state folder: two sets of parts on one folder would share a Redis file and a journal.

    Raises:
        UnavailableError: Another launcher holds it.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "local.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                f"The parts are running already on {state_dir}.",
                hint='Talk to them with `python -m bot.workspace say "/qlora start demo"`, or stop `make run` first.',
            ) from None
        yield


@contextlib.contextmanager
def running_parts(settings: RunnerSettings, parts: Mapping[str, tuple[str, ...]] = PARTS) -> Iterator[list[Part]]:
    """Start parts; stop them, last started first, whatever happens inside.

    Args:
        settings: What every part is given; they find each other through the files that they leave in the state folder.
        parts: Name of each part, with module and arguments.

    Raises:
        UnavailableError: The parts are running already on this state folder.
    """
    logs = settings.state_dir / "logs"
    environment = _environment(settings)
    started: list[Part] = []
    with _sole_owner(settings.state_dir):
        logs.mkdir(exist_ok=True)
        for address in ADDRESS_FILES:
            (settings.state_dir / address).unlink(missing_ok=True)  # left by parts that were killed
        try:
            for name, arguments in parts.items():
                log = logs / f"{name}.log"
                with log.open("wb") as output:
                    started.append(Part(name, _start(arguments, environment, output), log))
            yield started
        finally:
            for part in reversed(started):
                _stop(part)


def _environment(settings: RunnerSettings) -> dict[str, str]:
    # What is configured for production must not leak in: this is a machine of its own.
    outer = {name: value for name, value in os.environ.items() if name != "REDIS_URL" and not name.startswith("SLACK_")}
    return outer | {
        "QLORA_STATE_DIR": str(settings.state_dir),
        "QLORA_PROJECTS_DIR": str(settings.projects_dir),
        "QLORA_MODELS_ROOT": str(settings.models_root),
        "QLORA_OUTPUT_ROOT": str(settings.output_root),
        "QLORA_HOST": settings.host,
        "QLORA_LEASE_S": str(settings.lease_s),
        "QLORA_STOP_GRACE_S": str(settings.stop_grace_s),
        # People read these, in the logs folder and when a part dies.
        "QLORA_LOG_FORMAT": "text",
    }


def _start(arguments: tuple[str, ...], environment: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own, so that Ctrl-C reaches the launcher only, which then stops the parts in order.
    return subprocess.Popen(
        (sys.executable, "-m", *arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_the_launcher,  # noqa: PLW1509 - one thread here, and prctl touches nothing of Python's
    )


def _stop(part: Part) -> None:
    if part.process.poll() is None:
        part.process.terminate()
    try:
        part.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(part.process.pid, signal.SIGKILL)
        part.process.wait()


def require_alive(parts: list[Part]) -> None:
    """Notice a part that has ended by itself.

    Raises:
        UnavailableError: Names it, with the end of its log.
    """
    for part in parts:
        status = part.process.poll()
        if status is not None:
            tail = "\n".join(part.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise UnavailableError(f"The part {part.name!r} ended with status {status}.", hint=f"{part.log}:\n{tail}")


def wait_for_file(path: Path, parts: list[Part], *, wait_s: float = 30.0) -> None:
    """Wait until a part has left its address.

    Raises:
        UnavailableError: It did not in time, or a part ended.
    """
    deadline = time.monotonic() + wait_s
    while not path.exists():
        require_alive(parts)
        if time.monotonic() > deadline:
            raise UnavailableError(f"{path} did not appear within {wait_s:g} s.", hint="Look into the logs beside it.")
        time.sleep(0.05)
