"""The child process: one attempt, reported as one JSON event a line.

`python -m runner.training RUN_DIR [--events-fd N]` reads RUN_DIR/spec.json and ends with exit status 0 after
`run_succeeded`, 1 after `run_failed`, 3 after `run_interrupted`. SIGTERM asks for a checkpoint at the next step.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from runner.errors import QLoRAError
from runner.events import ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.redaction import redact
from runner.settings import load_settings
from runner.spec import RunSpec
from runner.training.stopping import StopSwitch

EXIT_STATUS: dict[type[ChildEvent], int] = {RunSucceeded: 0, RunFailed: 1, RunInterrupted: 3}


class EventWriter:
    """Writes every event into the run directory and to whoever started us.

    Args:
        log: `events.jsonl`, open for appending.
        reader: The pipe to the parent.
        stop: Set when the parent no longer reads: without it nobody would ever publish the adapter.
    """

    def __init__(self, log: TextIO, reader: TextIO, stop: StopSwitch) -> None:
        self._log = log
        self._reader: TextIO | None = reader
        self._stop = stop

    def emit(self, event: ChildEvent) -> None:
        """Write one line to both, at once."""
        line = event.model_dump_json() + "\n"
        self._log.write(line)
        self._log.flush()
        if self._reader is None:
            return
        try:
            self._reader.write(line)
            self._reader.flush()
        except BrokenPipeError:
            self._reader = None
            self._stop.set()


def run(run_dir: Path, writer: EventWriter, stop: StopSwitch) -> int:
    """Run the attempt and write its last event.

    Returns:
        The exit status.
    """
    end: RunSucceeded | RunFailed | RunInterrupted
    try:
        settings = load_settings()
        spec = RunSpec.model_validate_json((run_dir / "spec.json").read_bytes())
        # Imported here: loading the training stack takes seconds, and its failure is an event like any other.
        from runner.training.pipeline import train  # noqa: PLC0415

        end = train(
            spec, run_dir, writer.emit, models_root=settings.models_root, projects_dir=settings.projects_dir, stop=stop
        )
    except Exception as error:  # noqa: BLE001  # the boundary of the process: whatever happens becomes its last event
        sys.stderr.write(redact(traceback.format_exc()))
        end = failure_of(error)
    writer.emit(end)
    return EXIT_STATUS[type(end)]


def failure_of(error: Exception) -> RunFailed:
    """Turn an exception into the event that people see, tokens redacted."""
    if isinstance(error, QLoRAError):
        return RunFailed(code=error.code, message=redact(error.message), hint=error.hint and redact(error.hint))
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return RunFailed(
        code="internal",
        message=redact(message),
        hint="The traceback is in train.log in the run directory.",
    )


def main(arguments: list[str]) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m runner.training")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--events-fd", type=int, help="write events to this descriptor, default standard output")
    options = parser.parse_args(arguments)
    if not options.run_dir.is_dir():
        parser.error(f"{options.run_dir} is no folder")
    # Read when torch is loaded. Its threads wait for each other by spinning, and beside other work on a host with two
    # cores that made a step ten times slower and more. Sleeping costs a little where nothing else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before the imports: a stop that comes while they run must not kill us.
    stop = StopSwitch()
    stop.listen(signal.SIGTERM, signal.SIGINT)
    with ExitStack() as stack:
        log = stack.enter_context((options.run_dir / "events.jsonl").open("a", encoding="utf-8"))
        events_fd = options.events_fd
        if events_fd is None:
            # Standard output is for events then; what libraries print goes the way of their errors.
            events_fd = os.dup(sys.stdout.fileno())
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        # Nobody else may hold it: the parent reads until the last holder is gone.
        os.set_inheritable(events_fd, False)
        reader = stack.enter_context(open(events_fd, "w", encoding="utf-8"))  # noqa: PTH123  # a descriptor
        return run(options.run_dir, EventWriter(log, reader, stop), stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
