"""Earlier runs in the output root that tell how long one of the same shape takes on this host."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from runner.event_lines import parse_event
from runner.events import DataMixed, RunSucceeded, TrainingStarted, VersionsReported
from runner.optimizers import choose_optimizer
from runner.plan import Preflight
from runner.reports import RunSummary
from runner.spec import ProjectSpec, RunSpec
from runner.versions import installed_versions

_WITHOUT_EFFECT = {
    "name", "description", "output_directory", "revision", "compute",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "loraplus_lr_ratio", "max_grad_norm", "label_smoothing_factor",
    "seed", "data_seed", "logging_steps", "step_timeout_s", "max_loss_rise",
}  # fmt: skip
"""Settings that change neither how long a run takes nor what memory."""


def find_earlier_run(spec: RunSpec, found: Preflight, output_root: Path) -> RunSummary | None:
    """The newest run in the output root that did the same work with the same libraries on the same device.

    Args:
        spec: What would run.
        found: Its device and data.
        output_root: Where the run directories lie.
    """
    ended: list[tuple[float, Path]] = []
    for current, folders, files in os.walk(output_root):
        if "events.jsonl" in files and "spec.json" in files:
            folders.clear()
            path = Path(current) / "events.jsonl"
            ended.append((path.stat().st_mtime, path))
    for _, path in sorted(ended, reverse=True):
        summary = _summary_of_same_run(path, spec, found)
        if summary is not None:
            return summary
    return None


def _summary_of_same_run(events_path: Path, spec: RunSpec, found: Preflight) -> RunSummary | None:
    try:
        earlier = RunSpec.model_validate_json((events_path.parent / "spec.json").read_bytes())
        if _shape(earlier.project, found.device) != _shape(spec.project, found.device):
            return None
        events = [parse_event(line) for line in events_path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValidationError):
        # Of another version of this project, or cut off: it tells nothing.
        return None
    mixed = [event for event in events if isinstance(event, DataMixed)]
    # A run that could judge the chat template only with its weights at hand may have mixed its rows again.
    if mixed and _data(mixed[-1]) != _data(found.data):
        return None
    installed = installed_versions()
    for event in events:
        if isinstance(event, VersionsReported):
            same = {package.name: package.installed for package in event.packages} == installed
            if not same or event.device != found.device:
                return None
        if isinstance(event, TrainingStarted) and event.resumed_from_step:
            return None
    last = events[-1] if events else None
    return last.summary if isinstance(last, RunSucceeded) else None


def _data(event: DataMixed) -> dict[str, object]:
    return event.model_dump(exclude={"at"})


def _shape(project: ProjectSpec, device: str) -> object:
    # A run writes its host's choice in the place of `auto`.
    optim = choose_optimizer(project.training.optim, on_cpu=device.rpartition(" x ")[2].startswith("cpu"))
    training = project.training.model_copy(update={"optim": optim})
    return _without(project.model_copy(update={"training": training}).model_dump(mode="json"))


def _without(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in _WITHOUT_EFFECT}
    return value
