"""What a dead worker has left: whoever holds its lock next gives its job back at once, instead of after the lease.

Fenced as every other write: the step moves the job only where the dead worker's token still holds it. It counts as a
lost host (`lua/expire.lua`), for a job that kills its worker must not go round for ever.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress

from runner.process_identity import ProcessIdentity
from runner.slots import Slots
from runner.store import Store

logger = logging.getLogger(__name__)

WATCHER_S = 2.0
"""How long the child's own watcher has to end its group; it does so as soon as the worker is gone."""
KILLED_S = 10.0
"""How long killed processes may take to go; longer ones hang in the kernel."""


def take_back(slots: Slots, store: Store) -> None:
    """Queue again what former holders of these locks worked on, once nothing of their children writes any more.

    Where a child cannot be ended, its job is left to the reconcilers.

    Raises:
        UnavailableError: Redis does not answer; nothing has been forgotten, so call it again.
    """
    for left in slots.left:
        if left.child is not None and not end_group(left.child):
            logger.error(
                "Processes of the former worker's child %d cannot be ended, so job %s is left to its lease.",
                left.child.pid,
                left.job_id,
            )
            continue
        job = store.take_back(left.job_id, left.token)
        store.withdraw(left.worker)
        if job is not None:
            logger.warning("Job %s of the worker that died here is taken back: it is %s.", job.id, job.state)
    slots.forget_left()


def end_group(leader: ProcessIdentity) -> bool:
    """Wait for the watcher of a child's group, then kill what is left of it.

    Returns:
        Whether nothing is left.
    """
    if _is_gone(leader, WATCHER_S):
        return True
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)
    return _is_gone(leader, KILLED_S)


def _is_gone(leader: ProcessIdentity, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while leader.group():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
