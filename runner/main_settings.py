"""The handful of settings by which people tell runs apart, and whatever somebody changed at the start. Pure."""

from __future__ import annotations

from typing import Any, Literal

from runner.reports import RUNG_WORDS, Resolved
from runner.spec import RunSpec

_BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps", "compute.gpus")


def main_settings(spec: RunSpec) -> tuple[Resolved, ...]:
    """Learning rate, length, rows a step, rank and first rung as asked for, then every other override.

    Args:
        spec: As submitted.

    Returns:
        Each with who decided it; one that several settings make is an override where one of them is.
    """
    project = spec.project
    training, rungs = project.training, project.quantization.ladder
    length = "num_train_epochs" if training.max_steps < 0 else "max_steps"
    at_once, times, gpus = (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
        project.compute.gpus,
    )
    factors = " x ".join(str(one) for one in (at_once, times, gpus) if one > 1)
    kind, of = "packs" if training.packing else "rows", f" ({factors})" if "x" in factors else ""
    main = [
        ("learning_rate", training.learning_rate, ("training.learning_rate",)),
        (length, getattr(training, length), (f"training.{length}",)),
        ("effective batch", f"{at_once * times * gpus} {kind}{of}", _BATCH),
        ("r", project.lora.r, ("lora.r",)),
        ("lora_alpha", project.lora.lora_alpha, ("lora.lora_alpha",)),
        ("asked for", RUNG_WORDS[rungs[0]], ("quantization.ladder",)),
    ]
    told = [Resolved(name=name, value=_shown(value), origin=_origin(spec, paths)) for name, value, paths in main]
    known = {path for _, _, paths in main for path in paths}
    others = [
        Resolved(name=path.rpartition(".")[2], value=text, origin="override")
        for path, text in spec.overrides.items()
        if path not in known
    ]
    return (*told, *others)


def _origin(spec: RunSpec, paths: tuple[str, ...]) -> Literal["override", "project", "default"]:
    if any(path in spec.overrides for path in paths):
        return "override"
    return "project" if any(path in spec.stated for path in paths) else "default"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
