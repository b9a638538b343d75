"""A trial: the run itself, begun in a scratch folder and ended after a few steps, to see what it takes here.

It is the ordinary training child on the ordinary spec, so whatever a run does before and between its steps is in the
figures. Nothing of it is kept.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from runner.child import Child, Spawn
from runner.errors import TrainingError
from runner.events import (
    BatchHalved,
    CheckpointSaved,
    ChildEvent,
    LossEvaluated,
    MetricsLogged,
    ModelLoaded,
    PhaseStarted,
    RunFailed,
    RunInterrupted,
    TrainingStarted,
)
from runner.reports import Phase, Rung
from runner.run_directory import LONGEST_FIRST_MARKER, open_attempt
from runner.settings import RunnerSettings
from runner.spec import RunSpec

ENOUGH_S = 6.0
"""Seconds of steps after which a trial ends, once it has seen `ENOUGH_STEPS`."""
WARMING_STEPS = 2
"""The first ones, which compile kernels and take the longest rows (`runner.training.loop.longest_first`): they tell the
memory that a run takes, not its time."""
ENOUGH_STEPS = WARMING_STEPS + 3
MOST_STEPS = 40
LIMIT_S = 900.0
"""Seconds after which a trial ends with whatever it has seen."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a few real steps have shown."""

    rung: Rung
    """The rung that holds on this host."""
    total_steps: int
    steps: int
    """Steps measured; the first two, which warm up and take the longest rows, are not among them."""
    step_s: float
    """Seconds a step, on average."""
    import_s: float
    """Seconds until the child's first event."""
    prepare_s: float
    """From there to the first step: tokenizer, model, data, answers before training."""
    model_s: float
    """Of these, loading and probing the model."""
    baseline_s: float
    """Of these, evaluating before training."""
    evaluation_s: float
    """Seconds of one evaluation in the middle of training; 0 where the run has none."""
    checkpoint_s: float
    """Seconds to write a checkpoint."""
    checkpoint_bytes: int
    peak_bytes: int | None
    """Most memory that the child has held."""
    halved: BatchHalved | None = None
    """The last time that the batch had to be halved to fit, None where it fitted as it is."""


def run_trial(spec: RunSpec, settings: RunnerSettings, spawn: Spawn, tell: Callable[[ChildEvent], None]) -> Trial:
    """Begin the run, measure, and stop it.

    Args:
        spec: What would run.
        settings: The scratch folder goes to the output root, where a checkpoint must fit in earnest, too; the log of a
            failed trial to the state folder.
        spawn: Starts the child.
        tell: Gets every event, to show that something happens.

    Raises:
        TrainingError: The run failed, with the code, message and hint that it would have failed with; or no step was
            done in time (`trial-too-slow`).
    """
    spec = _shortened(spec)
    settings.output_root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".plan-", dir=settings.output_root))
    try:
        run_directory = open_attempt(scratch, spec)
        (run_directory.path / LONGEST_FIRST_MARKER).touch()
        watch = _Watch()
        with spawn(run_directory.path) as child:
            _watch(child, watch, tell)
            end = child.end()
        if isinstance(end, RunFailed):
            raise _failure(end, run_directory.log_path, settings.state_dir / "logs" / f"plan-{spec.project.name}.log")
        checkpoint = run_directory.newest_checkpoint()
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) if checkpoint else 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    ended_s = (end.at - watch.steps[-1].at).total_seconds() if isinstance(end, RunInterrupted) and watch.steps else 0.0
    return watch.measured(checkpoint_s=ended_s, checkpoint_bytes=size)


def _shortened(spec: RunSpec) -> RunSpec:
    """The spec with a report of every step, and one evaluation among the first few where the run has any."""
    training = spec.project.training
    changed: dict[str, Any] = {"logging_steps": 1}
    if training.eval_strategy != "no":
        changed |= {"eval_strategy": "steps", "eval_steps": WARMING_STEPS + 1}
        # Nothing is to be kept, and nothing to end before we say so.
        changed |= {"load_best_model_at_end": False, "early_stopping_patience": None, "early_stopping_threshold": 0.0}
    project = spec.project.model_copy(update={"training": training.model_copy(update=changed)})
    return spec.model_copy(update={"project": project})


def _failure(end: RunFailed, log: Path, kept_log: Path) -> TrainingError:
    kept_log.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, kept_log)
    hint = f"{end.hint or ''}\nThe trial's log is {kept_log}.".strip().replace(str(log), str(kept_log))
    return TrainingError(end.message, hint=hint, code=end.code)


def _watch(child: Child, watch: _Watch, tell: Callable[[ChildEvent], None]) -> None:
    for event in child.events():
        if event is not None:
            watch.see(event)
            tell(event)
        if watch.has_enough:
            child.ask_to_stop()


class _Watch:
    """Keeps of a child's events what the figures are made of."""

    def __init__(self) -> None:
        self.steps: list[MetricsLogged] = []
        self._began = time.monotonic()
        self._import_s = 0.0
        self._first: ChildEvent | None = None
        self._prepared: TrainingStarted | None = None
        self._started: TrainingStarted | None = None
        self._loaded: ModelLoaded | None = None
        self._phases: dict[Phase, ChildEvent] = {}
        self._step_spans: list[float] = []
        self._evaluation_spans: list[float] = []
        self._previous: ChildEvent | None = None
        self.halved: BatchHalved | None = None

    def see(self, event: ChildEvent) -> None:
        if self._first is None:
            self._first, self._import_s = event, time.monotonic() - self._began
        match event:
            # What comes again, where several processes have halved their batch and load again, a run does once.
            case PhaseStarted():
                self._phases.setdefault(event.phase, event)
            case ModelLoaded():
                self._loaded = self._loaded or event
            case TrainingStarted():
                self._prepared = self._prepared or event
                self._started = event
            case MetricsLogged():
                if self.steps:
                    self._step_spans.append(self._since_previous(event))
                self.steps.append(event)
                self._previous = event
            case LossEvaluated():
                self._evaluation_spans.append(self._since_previous(event))
                self._previous = event
            case BatchHalved():
                # The steps so far were of another kind, and begin again.
                self.halved = event
                for kept in (self.steps, self._step_spans, self._evaluation_spans):
                    kept.clear()
            case CheckpointSaved():
                self._previous = event
            case _:
                pass

    def _since_previous(self, event: ChildEvent) -> float:
        """Seconds since the last step, evaluation or checkpoint, whichever was later."""
        return (event.at - self._previous.at).total_seconds() if self._previous is not None else 0.0

    @property
    def has_enough(self) -> bool:
        if time.monotonic() - self._began > LIMIT_S:
            return True
        if not self.steps:
            return False
        first, last = self.steps[0], self.steps[-1]
        if last.step >= min(last.total_steps, MOST_STEPS):
            return True
        return len(self.steps) >= ENOUGH_STEPS and (last.at - first.at).total_seconds() >= ENOUGH_S

    def measured(self, *, checkpoint_s: float, checkpoint_bytes: int) -> Trial:
        if self._first is None or self._loaded is None or self._started is None or not self.steps:
            raise TrainingError(
                f"No training step was done in {LIMIT_S / 60:.0f} minutes.",
                hint="Use --no-measure to see the figures that need no trial.",
                code="trial-too-slow",
            )
        # Where there are no others, their warming up is in the figure.
        spans = (
            self._step_spans[WARMING_STEPS - 1 :]
            or self._step_spans
            or [(self.steps[0].at - self._started.at).total_seconds()]
        )
        return Trial(
            rung=self._loaded.receipt.rung,
            total_steps=self._started.total_steps,
            steps=len(spans),
            step_s=fmean(spans),
            evaluation_s=fmean(self._evaluation_spans) if self._evaluation_spans else 0.0,
            import_s=self._import_s,
            prepare_s=((self._prepared or self._started).at - self._first.at).total_seconds(),
            model_s=(self._loaded.at - self._phases[Phase.MODEL].at).total_seconds(),
            baseline_s=self._between(Phase.BASELINE, Phase.TRAINING),
            checkpoint_s=checkpoint_s,
            checkpoint_bytes=checkpoint_bytes,
            peak_bytes=self.steps[-1].peak_bytes,
            halved=self.halved,
        )

    def _between(self, phase: Phase, following: Phase) -> float:
        if phase not in self._phases or following not in self._phases:
            return 0.0
        return (self._phases[following].at - self._phases[phase].at).total_seconds()
