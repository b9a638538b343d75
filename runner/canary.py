"""The canary from the worker's side: a child that trains one step of a tiny model before the first job is taken.

The worker itself never imports torch. A host that fails takes no job, says why, and is tried again after a while.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from runner.child import EVENTS_FD, Child, child_environment
from runner.events import RunFailed, RunSucceeded
from runner.pools import Hindrance, Obstacle
from runner.settings import RunnerSettings

logger = logging.getLogger(__name__)

TIMEOUT_S = 600.0
"""A host on which one tiny step takes longer than that is not well."""

TryOut = Callable[[], str | None]
"""Tries this host out; says what is wrong with it, None when nothing is."""


def train_one_step(settings: RunnerSettings, worker: str) -> str | None:
    """Train one step in a child (`runner.training.canary`), with the devices that this process's children see.

    Returns:
        What went wrong, with what to do about it; None when nothing did. The child's output is kept then.
    """
    folder = settings.state_dir / "canary"
    log_folder = folder / re.sub(r"[^\w.-]", "_", worker)
    log_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "runner.training.canary", str(folder), "--events-fd", str(EVENTS_FD)]
    deadline = time.monotonic() + TIMEOUT_S
    with Child(command, log_folder, environ=child_environment(settings)) as child:
        for _ in child.events():
            if time.monotonic() > deadline:
                child.kill()
                return f"It did not train one step of a tiny model within {TIMEOUT_S:g} s; its log is {child.log_path}."
        end = child.end()
    if isinstance(end, RunSucceeded):
        _remove(log_folder)
        return None
    if isinstance(end, RunFailed):
        return f"{end.message} {end.hint or ''}".strip()
    return f"It was stopped; its log is {child.log_path}."


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


class Canary(threading.Thread):
    """Tries this host out until it passes once.

    Args:
        try_out: The trial.
        retry_s: Seconds from a failure to the next trial.
        may_begin: Whether a trial would tell something now: it cannot while somebody else is on the GPU.
        changed: Called when there is news.
    """

    def __init__(
        self,
        try_out: TryOut,
        *,
        retry_s: float,
        may_begin: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        super().__init__(name="canary", daemon=True)
        self._try_out = try_out
        self._retry_s = retry_s
        self._may_begin = may_begin
        self._changed = changed
        self._closing = threading.Event()
        self.hindrance: Hindrance | None = Hindrance(
            obstacle=Obstacle.CHECKING, why="It tries out whether it can train one step of a tiny model."
        )
        """What it has found so far; None once the host has passed."""

    def run(self) -> None:
        """Try until it passes or `close` is called."""
        while not self._closing.is_set():
            if not self._may_begin():
                self._closing.wait(min(self._retry_s, 5.0))
                continue
            began = time.monotonic()
            try:
                wrong = self._try_out()
            except Exception as error:
                logger.exception("The canary could not be started.")
                wrong = f"The canary could not be started: {type(error).__name__}: {error}"
            if self._closing.is_set():
                return
            if wrong is None:
                logger.info("The canary has trained one step in %.0f s.", time.monotonic() - began)
                self.hindrance = None
                self._changed()
                return
            logger.error("The canary failed; it is tried again in %g s. %s", self._retry_s, wrong)
            self.hindrance = Hindrance(obstacle=Obstacle.UNHEALTHY, why=f"The canary failed: {wrong}")
            self._changed()
            self._closing.wait(self._retry_s)

    def close(self) -> None:
        """Try no more."""
        self._closing.set()
