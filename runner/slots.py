"""Which worker has which device of this host: one lock file each, held for as long as its worker lives.

The kernel gives a lock back when the process is gone, however it ended. So whoever gets one knows that the former
holder is dead, and finds in the file what that one worked on (`runner.former_worker` takes it back).

A worker holds the file of each of its GPUs. On a host without GPUs any number of workers share the cores: there a
worker holds the file of its name, or without one that of the lowest free number, which the next worker to start takes
over from a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from runner.errors import UnavailableError
from runner.pools import Gpu
from runner.process_identity import ProcessIdentity
from runner.reports import Record

logger = logging.getLogger(__name__)

_LOCKED = {errno.EAGAIN, errno.EACCES}


class AttemptNote(Record):
    """What a worker works on, as it leaves it for the next one on the same device."""

    worker: str
    """How reports call that worker."""
    job_id: str
    token: int
    """The attempt's fencing token."""
    child: ProcessIdentity | None = None
    """The leader of the child's process group, None while there is none."""


class WorkerNote(Record):
    """What stands in a lock file; true of a living worker only while the file is locked."""

    worker: str
    process: ProcessIdentity
    since: AwareDatetime
    attempt: AttemptNote | None = None
    """What it works on."""
    left: tuple[AttemptNote, ...] = ()
    """What dead holders of this file have worked on, until it is taken back."""


class Slots:
    """The lock files of one worker; `take_slots` makes them.

    Args:
        note: Who holds them, and what former holders have left.
        descriptors: Of the locked files.
    """

    def __init__(self, note: WorkerNote, descriptors: Sequence[int]) -> None:
        self._note = note
        self._descriptors = list(descriptors)
        self._write()

    @property
    def left(self) -> tuple[AttemptNote, ...]:
        """What dead holders have left, until `forget_left`."""
        return self._note.left

    def forget_left(self) -> None:
        """It has been taken back."""
        self._note = self._note.model_copy(update={"left": ()})
        self._write()

    def note_attempt(self, attempt: AttemptNote | None) -> None:
        """Write down what this worker works on now."""
        self._note = self._note.model_copy(update={"attempt": attempt})
        self._write()

    def note_child(self, pid: int) -> None:
        """Write down who works on the present attempt."""
        if self._note.attempt is not None:
            self.note_attempt(self._note.attempt.model_copy(update={"child": ProcessIdentity.of(pid)}))

    def close(self) -> None:
        """Give the locks back. What is noted stays for the next holder."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _write(self) -> None:
        # In place, for the lock is the file's and not its name's. The first line counts, and a kill does not cut one
        # write in two.
        data = self._note.model_dump_json().encode() + b"\n"
        for descriptor in self._descriptors:
            try:
                os.pwrite(descriptor, data, 0)
                os.ftruncate(descriptor, len(data))
                os.fsync(descriptor)
            except OSError as error:
                # The lock holds all the same; without the note the next worker waits for the lease.
                logger.warning("What worker %s works on cannot be written down: %s", self._note.worker, error)


def take_slots(folder: Path, host: str, worker: str, *, gpus: Sequence[Gpu], name: str | None) -> Slots:
    """Lock what a worker is to have for itself on this host.

    Args:
        folder: Where the lock files of all workers of this host lie.
        host: How this host calls itself; hosts may share the folder.
        worker: How reports call the worker.
        gpus: Its devices, none where it trains on the CPU.
        name: The name that somebody gave it, None where it was given none.

    Raises:
        UnavailableError: Another living worker holds one of them (`device-taken`, `name-taken`).
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    prefix = _for_a_file(host)
    taken: list[int] = []
    try:
        if gpus:
            for gpu in gpus:
                told = f"{gpu.told} of host {host}"
                taken.append(_take(folder / f"{prefix}.{gpu.uuid}.lock", told, code="device-taken"))
        elif name is not None:
            path = folder / f"{prefix}.name-{_for_a_file(name)}.lock"
            taken.append(_take(path, f"The name {name!r} on host {host}", code="name-taken"))
        else:
            taken.append(_take_a_number(folder, prefix))
        found = {attempt.token: attempt for note in map(_read, taken) if note for attempt in _attempts(note)}
        process, left = ProcessIdentity.of(os.getpid()), tuple(found.values())
        return Slots(WorkerNote(worker=worker, process=process, since=datetime.now(UTC), left=left), taken)
    except BaseException:
        for descriptor in taken:
            os.close(descriptor)
        raise


def _for_a_file(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _attempts(note: WorkerNote) -> Iterator[AttemptNote]:
    yield from note.left
    if note.attempt is not None:
        yield note.attempt


def _take(path: Path, what: str, *, code: str) -> int:
    descriptor = _lock(path)
    if descriptor is None:
        holder = _holder(path)
        raise UnavailableError(
            f"{what} is taken by {holder}.",
            hint="Stop that worker first, or give this one other devices (--devices) or another name (--name).",
            code=code,
        )
    return descriptor


def _take_a_number(folder: Path, prefix: str) -> int:
    # First where a dead worker has left something to take back.
    for path in chain(_left_behind(folder, prefix), (folder / f"{prefix}.cpu-{number}.lock" for number in count(1))):
        descriptor = _lock(path)
        if descriptor is not None:
            return descriptor
    raise AssertionError("there is always a next number")


def _left_behind(folder: Path, prefix: str) -> Iterator[Path]:
    for path in sorted(folder.glob(f"{prefix}.cpu-*.lock")):
        note = _read_file(path)
        if note is not None and any(_attempts(note)):
            yield path


def _lock(path: Path) -> int | None:
    """Open and lock a file; None when somebody else has it locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _LOCKED:
            return None
        raise
    return descriptor


def _holder(path: Path) -> str:
    note = _read_file(path)
    if note is None:
        return f"a worker that has not yet said who it is ({path})"
    return f"worker {note.worker} (pid {note.process.pid}, since {note.since:%Y-%m-%d %H:%M:%S} UTC)"


def _read_file(path: Path) -> WorkerNote | None:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return _read(file.fileno())
    return None


def _read(descriptor: int) -> WorkerNote | None:
    """What a file says; None when it is empty, or a crash of the host has cut it: then the lease has to run out."""
    line, _, _ = os.pread(descriptor, 1 << 16, 0).partition(b"\n")
    try:
        return WorkerNote.model_validate_json(line)
    except ValidationError:
        return None
