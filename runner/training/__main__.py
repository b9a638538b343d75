"""The child process: one attempt, reported as one JSON event a line.

`python -m runner.training RUN_DIR [--events-fd N]` reads RUN_DIR/spec.json and ends with exit status 0 after
`run_succeeded`, 1 after `run_failed`, 3 after `run_interrupted`. SIGTERM asks for a checkpoint at the next step.
Where the project asks for several GPUs this process launches one rank for each, the same program with `--rank`.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TextIO, TypedDict

from runner.child import TRAINING_PROGRAM, RunEnd
from runner.errors import DiskFullError, QLoRAError
from runner.events import ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.redaction import redact, redact_all
from runner.settings import load_settings
from runner.spec import RunSpec
from runner.training.launcher import BatchTooLargeError, RankStart, obey_launcher, rank_command, run_ranks
from runner.training.native_libraries import choose_native_settings
from runner.training.signs_of_life import SignsOfLife
from runner.training.stopping import StopSwitch

BEAT_S = 10.0
"""Seconds between two signs of life that are no events."""
EXIT_STATUS: dict[type[ChildEvent], int] = {RunSucceeded: 0, RunFailed: 1, RunInterrupted: 3}


class _RankOptions(TypedDict):
    """What `train` and `assist` of a rank have in common."""

    models_root: Path
    projects_dir: Path
    on_stall: Callable[[RunFailed], None]
    signs: SignsOfLife
    rows_at_once: int | None


class EventWriter:
    """Writes every event into the run directory and to whoever started us.

    Args:
        log: `events.jsonl`, open for appending; None for a rank, whose launcher keeps that file.
        reader: The pipe to the parent.
        stop: Set when the parent no longer reads: without it nobody would ever publish the adapter.
        beats: Whether the parent understands an empty line as a sign of life.
    """

    def __init__(self, log: TextIO | None, reader: TextIO, stop: StopSwitch, *, beats: bool = False) -> None:
        self._log = log
        self._next_beat = time.monotonic() + BEAT_S if beats else float("inf")
        self._reader: TextIO | None = reader
        self._stop = stop

    def emit(self, event: ChildEvent) -> None:
        """Write one line to both, at once, without secrets.

        Raises:
            OSError: The file takes no more, as on a full disk. The parent has heard of the event all the same, and the
                next one goes to the parent alone: it is why the run ends.
        """
        line = redact_all(event).model_dump_json() + "\n"
        self._tell(line)
        if self._log is None:
            return
        try:
            self._log.write(line)
            self._log.flush()
        except OSError:
            with suppress(OSError):  # It would write once more what it could not write just now.
                self._log.close()
            self._log = None
            raise

    def beat(self) -> None:
        """Say that the training moves, now and then: an empty line, which goes into nobody's history."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + BEAT_S
            self._tell("\n")

    def _tell(self, line: str) -> None:
        if self._reader is None:
            return
        try:
            self._reader.write(line)
            self._reader.flush()
        except BrokenPipeError:
            self._reader = None
            self._stop.set()


def run(run_dir: Path, writer: EventWriter, stop: StopSwitch) -> int:
    """Run the attempt, as ranks where the project asks for several GPUs, and write its last event.

    Returns:
        The exit status.
    """
    end: RunEnd
    try:
        spec = _read_spec(run_dir)
        count = spec.project.compute.gpus
        if count > 1:
            end = run_ranks(
                rank_command(run_dir), count, emit=writer.emit, stop=stop, run_dir=run_dir, beat=writer.beat
            )
        else:
            settings = load_settings()
            # Imported here: loading the training stack takes seconds, and its failure is an event like any other.
            from runner.training.pipeline import train  # noqa: PLC0415

            end = train(
                spec,
                run_dir,
                writer.emit,
                models_root=settings.models_root,
                projects_dir=settings.projects_dir,
                stop=stop,
                on_stall=partial(_end_stalled, writer),
                signs=SignsOfLife(beat=writer.beat),
            )
    except Exception as error:  # noqa: BLE001  # the boundary of the process: whatever happens becomes its last event
        end = _failed(error)
    writer.emit(end)
    return EXIT_STATUS[type(end)]


def run_rank(run_dir: Path, start: RankStart, writer: EventWriter, stop: StopSwitch) -> int:
    """Run one rank's part; rank 0 writes the attempt's events, the others their failure, if any.

    A rank that has run out of memory writes the batch that all shall be started anew with, and ends.

    Returns:
        The exit status.
    """
    end: RunEnd | None = None
    try:
        spec, settings = _read_spec(run_dir), load_settings()
        from runner.training import ranks  # noqa: PLC0415  # as in `run`
        from runner.training.pipeline import assist, train  # noqa: PLC0415  # as in `run`

        on_stall = partial(_end_stalled, writer)
        ranks.join(start.rendezvous_fd, patience_s=spec.project.training.step_timeout_s, on_stall=on_stall)
        options: _RankOptions = {
            "models_root": settings.models_root,
            "projects_dir": settings.projects_dir,
            "on_stall": on_stall,
            "signs": SignsOfLife(start.signs_fd, start.rank, ranks.count(), beat=writer.beat),
            "rows_at_once": start.rows_at_once,
        }
        if start.rank == 0:
            end = train(spec, run_dir, writer.emit, stop=stop, **options)
        else:
            assist(spec, run_dir, **options)
    except BatchTooLargeError as error:
        sys.stderr.write(redact(traceback.format_exc()))
        writer.emit(error.halved)
        return 0
    except Exception as error:  # noqa: BLE001  # as in `run`
        end = _failed(error)
    if end is None:
        return 0
    writer.emit(end)
    return EXIT_STATUS[type(end)]


def _read_spec(run_dir: Path) -> RunSpec:
    return RunSpec.model_validate_json((run_dir / "spec.json").read_bytes())


def _end_stalled(writer: EventWriter, stalled: RunFailed) -> None:
    """Write the last event and end the process at once: whatever hangs would keep it from ending in order."""
    writer.emit(stalled)
    os._exit(EXIT_STATUS[RunFailed])


def _failed(error: Exception) -> RunFailed:
    # The event tells what matters also where train.log takes no more.
    with suppress(OSError):
        sys.stderr.write(redact(traceback.format_exc()))
    return failure_of(error)


def failure_of(error: Exception) -> RunFailed:
    """Turn an exception into the event that people see, tokens redacted."""
    if isinstance(error, QLoRAError):
        return RunFailed(code=error.code, message=redact(error.message), hint=error.hint and redact(error.hint))
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RunFailed(
            code=DiskFullError.code,
            message=f"The disk is full where the run directory lies: {redact(str(error))}",
            hint="Free some space, then start the job again.",
        )
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return RunFailed(
        code="internal",
        message=redact(message),
        hint="The traceback is in train.log in the run directory.",
    )


def main(arguments: list[str]) -> int:
    """Parse the command line and run; with `--standby FD` first wait for it (`runner.standby`)."""
    choose_native_settings()
    # Before the imports: a stop that comes while they run must not kill us.
    stop = StopSwitch()
    stop.listen(signal.SIGTERM, signal.SIGINT)
    if arguments[:1] == ["--standby"]:
        # Imported here, as in `run`.
        from runner.training import standby  # noqa: PLC0415

        given = standby.wait_for_job(int(arguments[1]), stop)
        if given is None:
            return 0
        arguments = given
        if standby.needs_fresh_process(Path(arguments[0])):
            os.execv(sys.executable, [*TRAINING_PROGRAM, *arguments])  # noqa: S606 - our own program, as it was started
    parser = argparse.ArgumentParser(prog="python -m runner.training")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--events-fd", type=int, help="write events to this descriptor, default standard output")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    for name in ("--rendezvous-fd", "--signs-fd", "--rows-at-once"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    rank: int | None = options.rank
    if not options.run_dir.is_dir():
        parser.error(f"{options.run_dir} is no folder")
    if rank is not None:
        obey_launcher(rank)
    with ExitStack() as stack:
        events_fd = options.events_fd
        if events_fd is None:
            # Standard output is for events then; what libraries print goes the way of their errors.
            events_fd = os.dup(sys.stdout.fileno())
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        # Nobody else may hold it: the parent reads until the last holder is gone.
        os.set_inheritable(events_fd, False)
        reader = stack.enter_context(open(events_fd, "w", encoding="utf-8"))  # noqa: PTH123  # a descriptor
        if rank is not None:
            start = RankStart(rank, events_fd, options.rendezvous_fd, options.signs_fd, options.rows_at_once)
            return run_rank(options.run_dir, start, EventWriter(None, reader, stop, beats=rank == 0), stop)
        log = stack.enter_context((options.run_dir / "events.jsonl").open("a", encoding="utf-8"))
        return run(options.run_dir, EventWriter(log, reader, stop, beats=options.events_fd is not None), stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
