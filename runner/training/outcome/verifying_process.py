"""Starts the verifying process early, so that its imports run beside the end of the training, and reads its verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from runner.deaths import describe_silent_death, kernel_kills
from runner.errors import AdapterError, TrainingError
from runner.events import AdapterVerified
from runner.training.launcher import environment_of_one
from runner.training.stopping import StopSwitch

_TICK_S = 0.1


class VerifyingProcess:
    """One verification; use it as a context manager, so that the process is gone afterwards.

    Args:
        run_dir: The attempt's folder.
        models_root: Where local base models lie.
    """

    def __init__(self, run_dir: Path, models_root: Path) -> None:
        self._command = [
            sys.executable, "-m", "runner.training.outcome.verify", str(run_dir),
            "--models-root", str(models_root), "--wait",
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self._log_path = run_dir / "train.log"
        self._kills_before = kernel_kills()

    def start(self) -> None:
        """Let it import; it takes no device memory before `begin`."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment_of_one(),
        )

    def begin(self) -> None:
        """Let it load the base model. The caller has freed its own: two may not fit on one device."""
        if self._process is None:
            self.start()
        process = self._running()
        try:
            process.stdin.write("begin\n")  # type: ignore[union-attr]  # piped in start
            process.stdin.flush()  # type: ignore[union-attr]  # piped in start
        except BrokenPipeError as error:
            raise self._died(process.wait()) from error

    def result(self, stop: StopSwitch) -> AdapterVerified:
        """Wait for the verdict.

        Raises:
            AdapterError: The adapter was refused.
            TrainingError: The base model could not be loaded a second time, or the process died.
            StopRequestedError: The switch was set.
        """
        process = self._running()
        while True:
            stop.raise_if_set()
            try:
                output, _ = process.communicate(timeout=_TICK_S)
                break
            except subprocess.TimeoutExpired:
                continue
        lines = output.splitlines()
        if process.returncode == 0 and lines:
            return AdapterVerified.model_validate_json(lines[-1])
        if process.returncode == 1 and lines:
            problem = json.loads(lines[-1])
            kind = AdapterError if problem["code"] == AdapterError.code else TrainingError
            raise kind(problem["message"], hint=problem["hint"], code=problem["code"])
        raise self._died(process.returncode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            # Also closes the pipes.
            self._process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("The verifying process was not started.")
        return self._process

    def _died(self, exit_status: int) -> TrainingError:
        # It printed into the log of the whole run, whose last lines may be anybody's.
        killed = kernel_kills() - self._kills_before
        told = describe_silent_death("verifying process", exit_status, self._log_path, "", kernel_killed=killed)
        return TrainingError(told.message, hint=told.hint, code=told.code)
