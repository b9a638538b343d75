"""What a run must share with the one whose checkpoint it goes on from, and what differs, by name.

Facts are plain values by dotted path, stored in a checkpoint's marker. The command line knows those of the spec; the
training child adds what shows only when model and rows are there. Imports nothing but the vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.errors import ResumeMismatchError
from runner.hyperparameters import Lora, Training
from runner.spec import RunSpec

Fact = str | int | float | bool | list[str] | None
Facts = dict[str, Fact]

WITHOUT_EFFECT = frozenset(
    f"training.{name}"
    for name in (
        "logging_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "per_device_eval_batch_size",
        "step_timeout_s",
        "max_loss_rise",
        "dataloader_num_workers",
        "torch_empty_cache_steps",
    )
)
"""Settings that a resumed run may change, because what is learned does not depend on them."""
ROWS_A_STEP = "training.per_device_train_batch_size * gradient_accumulation_steps * compute.gpus"
"""Only the product counts: a batch that was halved for want of memory, or dealt out to other ranks, is the same job."""
DIFFERENCES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a checkpoint was trained with."""

    spec: Facts
    """What the specification alone decides, by dotted path."""
    rung: str
    revision: str | None
    """Commit of a hub model, None for a local folder."""
    base_fingerprint: str | None
    """`runner.provenance`'s, of a local folder; None for a hub model."""
    quantization: Facts
    """The settings that decide what the base model's weights are on this rung."""
    datasets: dict[str, list[str]]
    """Where each dataset comes from and what pins it, by its id."""
    tokens: str
    """SHA-256 of the very tokens and labels."""


def spec_facts(spec: RunSpec) -> Facts:
    """The facts that a specification alone decides."""
    project = spec.project
    training = project.training.model_dump(mode="json")
    gpus = project.compute.gpus
    rows = training.pop("per_device_train_batch_size") * training.pop("gradient_accumulation_steps") * gpus
    facts = _flatten(
        {
            "base_model": project.base_model,
            "lora": project.lora.model_dump(mode="json"),
            "training": training,
            "traits": [trait.model_dump(mode="json") for trait in project.traits],
            "evaluation": {"held_out_percentage": project.evaluation.held_out_percentage},
        }
    )
    # Every rank draws its own random numbers. Where none are drawn in a step, one rank does what any number does.
    draws = project.lora.lora_dropout > 0 or project.training.neftune_noise_alpha is not None
    facts["compute.gpus"] = gpus if draws else 1
    for dataset_id, entry in sorted(spec.datasets.items()):
        # Where a file lies and what it is called says nothing about its rows, nor does a branch; their digest does.
        how = entry.model_dump(mode="json", exclude={"name", "description", "path", "revision"})
        facts |= _flatten(how, f"dataset {dataset_id}") if how else {}
    return {path: value for path, value in facts.items() if path not in WITHOUT_EFFECT} | {ROWS_A_STEP: rows}


def write_facts(facts: RunFacts, marker: Path) -> None:
    """Write a marker."""
    marker.write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")


def read_facts(marker: Path) -> RunFacts:
    """Read a marker.

    Raises:
        ResumeMismatchError: Another version of this program wrote it, which told other facts.
    """
    try:
        return RunFacts(**json.loads(marker.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ResumeMismatchError(
            f"{marker.parent} was written by another version of this program and does not say how it was trained.",
            hint="Start a new job; this one's checkpoints stay where they are.",
        ) from error


def refuse_mismatch(checkpoint: Path, differences: list[str]) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ResumeMismatchError: There are differences; names them.
    """
    if differences:
        more = f"; and {len(differences) - DIFFERENCES_SHOWN} more" if len(differences) > DIFFERENCES_SHOWN else ""
        raise ResumeMismatchError(
            f"{checkpoint} was trained otherwise: {'; '.join(differences[:DIFFERENCES_SHOWN])}{more}.",
            hint="Put it back as it was, or start a new job; this one's checkpoints stay where they are.",
        )


def tell_differences(before: RunFacts, now: RunFacts) -> list[str]:
    """What differs between two runs, a phrase each."""
    found = tell_changes(before.spec, now.spec)
    found += tell_changes({"base model revision": before.revision}, {"base model revision": now.revision})
    if before.base_fingerprint != now.base_fingerprint:
        found.append("the base model's files have changed")
    found += tell_changes({"rung": before.rung}, {"rung": now.rung})
    if before.rung == now.rung:
        found += tell_changes(before.quantization, now.quantization)
    for dataset_id, (path, content) in now.datasets.items():
        _, former = before.datasets.get(dataset_id, ("", content))
        if content != former:
            found.append(f"dataset {dataset_id}: {path} has other content")
    if not found and before.tokens != now.tokens:
        found.append("the same rows give other tokens: the tokenizer or its chat template has changed")
    return found


def tell_changes(before: Facts, now: Facts) -> list[str]:
    """What differs between facts by path, a phrase each, in the order of a project file."""
    # A setting that a former version did not have yet was as its default is. Else what only one side has differs too.
    before = {path: _DEFAULTS[path] for path in now if path in _DEFAULTS} | before
    changed = [path for path in before | now if before.get(path) != now.get(path)]
    return [f"{path}: {_shown(before.get(path))} → {_shown(now.get(path))}" for path in changed]


def _shown(value: Fact) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(value) or "none"
        case _:
            return str(value)


def _flatten(value: object, path: str = "") -> Facts:
    """Every plain value of nested tables by its dotted path; a list of plain values stays one."""
    if isinstance(value, dict):
        parts = [_flatten(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        parts = [_flatten(inner, f"{path}[{number}]") for number, inner in enumerate(value)]
    elif isinstance(value, list):
        return {path: [str(inner) for inner in value]}
    else:
        assert value is None or isinstance(value, str | int | float)  # noqa: S101  # all that JSON has left
        return {path: value}
    return {key: inner for part in parts for key, inner in part.items()}


_DEFAULTS = _flatten({"lora": Lora().model_dump(mode="json"), "training": Training().model_dump(mode="json")})
