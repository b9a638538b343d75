"""A run in the foreground, without Redis and Slack: what `train` and `replay` have in common."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from runner.child import Child, RunEnd, Spawn, spawn_training
from runner.console import TerminalStory, describe_settings
from runner.errors import UnavailableError, UsageError
from runner.events import ChildEvent, RunFailed, RunInterrupted, RunSucceeded
from runner.jobs import new_job_id
from runner.resuming import read_facts, refuse_mismatch, spec_facts, tell_changes
from runner.run_directory import COMPLETE_MARKER, RunDirectory, create_attempt, newest_checkpoint, open_attempt
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.versions import require_working_stack

STOPPED = 130


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `[--run-dir DIR] [--json]`."""
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=Path,
        help="keep the run in this folder, and go on from the checkpoint that an earlier run left there",
    )
    parser.add_argument("--json", action="store_true", help="print events only, one JSON object a line")


def run_in_foreground(
    spec: RunSpec,
    settings: RunnerSettings,
    arguments: argparse.Namespace,
    *,
    words: Sequence[str],
    spawn: Spawn | None = None,
) -> RunEnd:
    """Train in a child process, publish the adapter and tell the story.

    Args:
        spec: What to train.
        settings: This host's.
        arguments: What `add_run_arguments` declared.
        words: The verb and its arguments, for the line that says how to go on after Ctrl-C.
        spawn: Starts the child; tests put a small script in the training's place.

    Raises:
        UsageError: `--run-dir` names a finished run.
        ResumeMismatchError: `--run-dir` names a run with other settings.
        UnavailableError: The libraries of this host cannot train (`stack-unusable`); the run directory cannot be made.
    """
    require_working_stack()
    run_directory = _choose_run_directory(settings, spec, arguments.run_dir)
    spawn = spawn or spawn_training(settings)
    if arguments.json:
        return _train(run_directory, spawn, lambda event: print(event.model_dump_json(), flush=True))
    with TerminalStory(Console(file=sys.stdout)) as story:
        story.say(describe_settings(spec))
        end = _train(run_directory, spawn, story.show)
        story.say(_last_line(end, run_directory, words))
    return end


def exit_status(end: RunEnd) -> int:
    """0 trained and published, 1 failed, 130 stopped with a checkpoint."""
    match end:
        case RunSucceeded():
            return 0
        case RunFailed():
            return 1
        case RunInterrupted():
            return STOPPED


def _choose_run_directory(settings: RunnerSettings, spec: RunSpec, asked: Path | None) -> RunDirectory:
    if asked is None:
        return create_attempt(settings.output_root, spec, new_job_id(spec.project.name), 1)
    folder = asked.absolute()
    # Whoever names an attempt of an earlier run means that run.
    job_dir = folder.parent if re.fullmatch(r"attempt-\d+", folder.name) else folder
    _require_same_unfinished_run(job_dir, spec)
    return open_attempt(job_dir, spec)


def _require_same_unfinished_run(job_dir: Path, spec: RunSpec) -> None:
    """Keep a finished adapter, and checkpoints of other settings, from being trained over.

    Told here, before a model is loaded; the child looks again, at data and rung too.

    Raises:
        UsageError: The folder holds a finished run (`run-finished`).
        ResumeMismatchError: Its newest checkpoint was trained with other settings.
    """
    if (job_dir / "adapter").exists():
        raise UsageError(
            f"{job_dir} holds a finished run: its adapter is there.",
            hint="Leave --run-dir out, or name a new folder.",
            code="run-finished",
        )
    checkpoint = newest_checkpoint(job_dir)
    if checkpoint is not None:
        before = read_facts(checkpoint / COMPLETE_MARKER)
        now = spec_facts(spec)
        if now["training.optim"] == "auto":
            # Known only to the child, which puts its host's choice in the place of it.
            now["training.optim"] = before.spec.get("training.optim")
        refuse_mismatch(checkpoint, tell_changes(before.spec, now))


def _train(run_directory: RunDirectory, spawn: Spawn, show: Callable[[ChildEvent], None]) -> RunEnd:
    """Run the child to its end. The last event is shown after the adapter is published, and names that folder."""
    with spawn(run_directory.path) as child, _stop_on_signals(child):
        for event in child.events():
            if event is not None and not isinstance(event, RunEnd):
                show(event)
        end = child.end()
    if isinstance(end, RunSucceeded):
        try:
            end = end.model_copy(update={"adapter_path": str(run_directory.publish())})
        except UnavailableError as error:
            end = RunFailed(code=error.code, message=error.message, hint=error.hint)
    elif isinstance(end, RunInterrupted) and end.checkpoint is None:
        checkpoint = run_directory.newest_checkpoint()
        end = end.model_copy(update={"checkpoint": str(checkpoint) if checkpoint else None})
    show(end)
    return end


@contextmanager
def _stop_on_signals(child: Child) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint, the second ends the child at once."""
    asked = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            child.kill()
        else:
            asked = True
            child.ask_to_stop()

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _last_line(end: RunEnd, run_directory: RunDirectory, words: Sequence[str]) -> str:
    match end:
        case RunSucceeded():
            return f"Adapter: {end.adapter_path}"
        case RunFailed():
            return f"Log: {run_directory.log_path}"
        case RunInterrupted():
            # With the same overrides: a checkpoint of other settings is not gone on from.
            command = [sys.executable, "-m", "runner", *words, "--run-dir", str(run_directory.job_dir)]
            return f"Go on with: {shlex.join(command)}"
