"""Makes the plan of a run on this host: a preflight in a child, earlier runs, a trial, checks against what is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import ceil
from pathlib import Path

from runner.child import Spawn, child_environment, spawn_training
from runner.errors import TrainingError
from runner.events import BatchHalved, ChildEvent
from runner.history import find_earlier_run
from runner.hyperparameters import Training
from runner.plan import CheckName, FittingBatch, Origin, Plan, PlanCheck, PlanMemory, PlanTime, Preflight
from runner.redaction import redact
from runner.reports import Rung
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.trial import Trial, run_trial

_GB = 1_000_000_000
_MB = 1_000_000
_BYTES_A_TRAINED_PARAMETER = 12
"""In a checkpoint: the weight and the optimizer's two moments, in float32."""
_PLACES: dict[str, CheckName] = {"dataset": "data", "target-modules": "adapter"}
"""Error codes of a preflight that are not about the base model."""
_VERIFYING_SHARE = 0.6
"""What the verifying process imports takes this share of what a training imports: it knows no trl."""


def make_plan(
    spec: RunSpec,
    settings: RunnerSettings,
    *,
    measure: bool = True,
    tell: Callable[[ChildEvent], None] = lambda _: None,
    spawn: Spawn | None = None,
) -> Plan:
    """Find out what a run would take.

    Args:
        spec: What would run.
        settings: This host's.
        measure: Begin the run for a few steps where no earlier run tells how long it takes.
        tell: Gets the events of that trial.
        spawn: Starts the trial's child.
    """
    try:
        found = run_preflight(spec, settings)
    except TrainingError as error:
        name = _PLACES.get(error.code, "base model")
        check = PlanCheck(name=name, passed=False, message=error.message, hint=error.hint)
        return Plan(project=spec.project.name, host=settings.host, checks=(check,))
    return plan_from(found, spec, settings, measure=measure, tell=tell, spawn=spawn or spawn_training(settings))


def plan_from(
    found: Preflight,
    spec: RunSpec,
    settings: RunnerSettings,
    *,
    measure: bool,
    tell: Callable[[ChildEvent], None],
    spawn: Spawn,
) -> Plan:
    """Go on from a preflight: look for an earlier run, else try, and check. Arguments as of `make_plan`."""
    checks = [_access_check(found), _disk_check(spec, settings, found)]
    time, memory = None, _estimated_memory(found)
    may_try = all(check.passed for check in (*checks, *_memory_checks(memory, found))) and not found.fetch_bytes
    earlier = find_earlier_run(spec, found, settings.output_root)
    if earlier is not None:
        time = PlanTime(
            origin="history", duration_s=earlier.duration_s, training_s=earlier.train_s, total_steps=earlier.steps
        )
        memory = _memory("history", earlier.rung, earlier.peak_bytes, found) or memory
    elif measure and may_try:
        try:
            trial = run_trial(spec, settings, spawn, tell)
        except TrainingError as error:
            checks.append(PlanCheck(name="trial", passed=False, message=error.message, hint=error.hint))
        else:
            time = expected_time(spec, trial)
            memory = _memory("measured", trial.rung, trial.peak_bytes, found) or memory
            if trial.halved is not None:
                checks.append(PlanCheck(name="trial", passed=True, message=trial.halved.announcement))
                memory = memory and memory.model_copy(update={"fitting": _fitted(trial.halved, memory.peak_bytes)})
    if found.template_undecided:
        message = "whether the base model's own chat template is used is decided when its weights are here"
        checks.append(PlanCheck(name="data", passed=True, message=message))
    checks += _memory_checks(memory, found)
    return Plan(
        project=spec.project.name,
        host=settings.host,
        preflight=found,
        time=time,
        memory=memory,
        checks=tuple(checks),
    )


def run_preflight(spec: RunSpec, settings: RunnerSettings) -> Preflight:
    """Look at everything but the weights, in a process that may load torch.

    Raises:
        TrainingError: The run could not begin.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(spec.model_dump_json())
        file.flush()
        command = [sys.executable, "-m", "runner.training.preflight", file.name]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment(settings), check=False)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return Preflight.model_validate_json(lines[-1])
    if done.returncode == 1 and lines:
        problem = json.loads(lines[-1])
        raise TrainingError(problem["message"], hint=problem["hint"], code=problem["code"])
    last = redact((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    raise TrainingError(f"The preflight process died: {last}", code="preflight")


def _access_check(found: Preflight) -> PlanCheck:
    fetch = f", {found.fetch_bytes / _GB:.1f} GB to download first" if found.fetch_bytes else ""
    return PlanCheck(name="base model", passed=True, message=f"{found.base_model}{fetch}")


def _disk_check(spec: RunSpec, settings: RunnerSettings, found: Preflight) -> PlanCheck:
    checkpoint = found.trainable_parameters * _BYTES_A_TRAINED_PARAMETER
    # The oldest checkpoint goes when the newest is complete; the adapter comes on top.
    needed = checkpoint * (spec.project.training.save_total_limit + 1) + checkpoint
    wanted = [(settings.output_root, needed, "checkpoints and adapter", "QLORA_OUTPUT_ROOT")]
    if found.fetch_bytes:
        wanted.append((Path(found.cache_dir), found.fetch_bytes, "the base model", "HF_HOME"))
    # Both may lie on one disk.
    on_disk: dict[int, list[tuple[Path, int, str, str]]] = {}
    for place in wanted:
        on_disk.setdefault(_existing(place[0]).stat().st_dev, []).append(place)
    messages = []
    for places in on_disk.values():
        size, folder = sum(place[1] for place in places), places[-1][0]
        free = shutil.disk_usage(_existing(folder)).free
        what = " and ".join(f"{_size(place[1])} for {place[2]}" for place in places)
        messages.append(f"{what}, {_size(free)} free in {folder}")
        if size > free:
            hint = f"Free space, or set {' or '.join(place[3] for place in places)} to a folder on a larger disk."
            return PlanCheck(name="disk", passed=False, message=messages[-1], hint=hint)
    return PlanCheck(name="disk", passed=True, message="; ".join(messages))


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _memory(origin: Origin, rung: Rung, peak_bytes: int | None, found: Preflight) -> PlanMemory | None:
    if peak_bytes is None:
        return None
    return PlanMemory(origin=origin, rung=rung, peak_bytes=peak_bytes, available_bytes=found.available_bytes)


def _fitted(halved: BatchHalved, peak_bytes: int) -> FittingBatch:
    return FittingBatch(
        per_device_train_batch_size=halved.per_device_train_batch_size,
        gradient_accumulation_steps=halved.gradient_accumulation_steps,
        training_bytes=peak_bytes,
    )


def _estimated_memory(found: Preflight) -> PlanMemory | None:
    if not found.rungs:
        return None
    first = found.rungs[0]
    memory = _memory("estimated", first.rung, max(first.load_peak_bytes, first.training_bytes or 0), found)
    return memory and memory.model_copy(update={"fitting": first.fitting})


def _memory_checks(memory: PlanMemory | None, found: Preflight) -> list[PlanCheck]:
    if memory is None or memory.available_bytes is None:
        return []
    share = " on each device" if found.gpus > 1 else ""
    message = f"{_size(memory.peak_bytes)} of {_size(memory.available_bytes)} available{share}"
    batch = memory.fitting
    if batch is None:
        hint = (
            "Lower per_device_train_batch_size or max_length, set gradient_checkpointing = true, or use a larger host."
        )
        return [PlanCheck(name="memory", passed=memory.fits, message=message, hint=None if memory.fits else hint)]
    asked = f"per_device_train_batch_size = {found.per_device_train_batch_size}"
    settings = (
        f"training.per_device_train_batch_size={batch.per_device_train_batch_size} "
        f"training.gradient_accumulation_steps={batch.gradient_accumulation_steps}"
    )
    if memory.fits:
        message += f" with per_device_train_batch_size = {batch.per_device_train_batch_size}; {asked} does not fit"
    else:
        smaller = f"{_size(batch.training_bytes)} with {batch.per_device_train_batch_size}"
        message += f" with {asked}; about {smaller}, which fits"
    if found.halves_batch:
        hint = f"The run halves its batch by itself; {settings} spares it the attempt."
    else:
        hint = f"Add {settings}: a step has the same rows."
    return [PlanCheck(name="memory", passed=memory.fits or found.halves_batch, message=message, hint=hint)]


def expected_time(spec: RunSpec, trial: Trial) -> PlanTime:
    """What the whole run will take if it goes on as its trial began. Pure."""
    training = spec.project.training
    checkpoints = ceil(trial.total_steps / training.save_steps)
    training_s = trial.total_steps * trial.step_s + checkpoints * trial.checkpoint_s
    training_s += _evaluations(training, trial.total_steps) * trial.evaluation_s
    # The answers after training take as long as those before; meanwhile the verifying process imports what it needs,
    # then it loads the model once more.
    ending_s = max(trial.baseline_s, _VERIFYING_SHARE * trial.import_s) + trial.model_s
    return PlanTime(
        origin="measured",
        duration_s=trial.prepare_s + training_s + ending_s,
        training_s=training_s,
        total_steps=trial.total_steps,
        steps_measured=trial.steps,
    )


def _evaluations(training: Training, total_steps: int) -> int:
    """How often the loss on held-out rows is measured in the middle of training; the last step is one of them."""
    match training.eval_strategy:
        case "no":
            return 0
        case "steps":
            return ceil(total_steps / (training.eval_steps or training.logging_steps))
        case "epoch":
            return ceil(training.num_train_epochs)


def _size(size: float) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB else f"{size / _MB:.0f} MB"
