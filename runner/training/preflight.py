"""What can be known about a run before its weights are read: access, data, steps, memory on every rung.

`python -m runner.training.preflight SPEC_FILE` prints one JSON object: a `runner.plan.Preflight`, or code, message and
hint of what stands in the way.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset
from huggingface_hub import constants
from trl.data_utils import pack_dataset

from runner.errors import QLoRAError
from runner.host_memory import refuses_memory
from runner.hyperparameters import Training
from runner.plan import FittingBatch, Preflight, RungNeeds
from runner.redaction import redact
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.training.accelerator import choose_compute_dtype, choose_device, describe, peak_bytes
from runner.training.data.mix import Mix
from runner.training.loading.base_model import BaseModel
from runner.training.loading.quantized import EffectiveRungError
from runner.training.loading.weight_estimate import WeightEstimate, estimate_weights
from runner.training.loop.batch_halving import halve
from runner.training.loop.training_estimate import TrainingEstimate
from runner.training.memory import free_bytes
from runner.training.preparation import prepare
from runner.training.ranks import require_gpus

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_KERNEL_BYTES = 190_000_000
"""What a training process on a CPU takes for compiled kernels and its allocator's reserves, whatever the model: 80 to
230 MB, the more the more shapes a run computes on; seen on two threads with torch 2.9 and 2.13."""


def preflight(spec: RunSpec, settings: RunnerSettings) -> Preflight:
    """Do all of a run that needs no weights.

    Raises:
        TrainingError: The run could not begin; its subclass and code say who has to act.
    """
    gpus = spec.project.compute.gpus
    device = choose_device()
    if device.type == "cuda":
        require_gpus(gpus)
    prepared = prepare(
        spec, models_root=settings.models_root, projects_dir=settings.projects_dir, emit=lambda _event: None
    )
    spec, mix, trainable = prepared.spec, prepared.mix, prepared.trainable_parameters
    source, config = prepared.opened.source, prepared.opened.config.config
    fetch_bytes = source.bytes_to_fetch()
    # What this process holds, it gives back before the training begins.
    own = peak_bytes(device) if device.type == "cpu" else 0
    compute_dtype = choose_compute_dtype(device, spec.project.quantization.bnb_4bit_compute_dtype)
    training = TrainingEstimate(source, config, spec.project, mix, compute_dtype=compute_dtype, device=device)
    available = _available_bytes(device, gpus, own)
    return Preflight(
        device=(f"{gpus} x " if gpus > 1 else "") + describe(device),
        available_bytes=available,
        base_model=f"{source.name} at {source.revision}" if source.revision else str(source.folder),
        revision=source.revision,
        fetch_bytes=fetch_bytes,
        cache_dir=str(constants.HF_HUB_CACHE),
        gpus=gpus,
        per_device_train_batch_size=spec.project.training.per_device_train_batch_size,
        gradient_accumulation_steps=spec.project.training.gradient_accumulation_steps,
        halves_batch=gpus == 1 and (device.type == "cuda" or refuses_memory()),
        data=mix.event,
        template_undecided=not prepared.template_is_settled,
        total_steps=count_steps(mix, spec.project.training, gpus),
        trainable_parameters=trainable,
        rungs=tuple(
            _needs(weights, training, spec.project.training, own=own, available=available)
            for weights in _estimate_ladder(spec, source, config, compute_dtype)
        ),
    )


def _needs(
    weights: WeightEstimate, estimate: TrainingEstimate, training: Training, *, own: int, available: int | None
) -> RungNeeds:
    """What a rung takes, and the largest batch that fits where the project's does not."""

    def needed(tried: Training) -> int | None:
        step = estimate.bytes_of(weights.rung, tried)
        return None if step is None else own + weights.model_bytes + step + (_KERNEL_BYTES if own else 0)

    whole, fitting = needed(training), None
    if whole is not None and available is not None and whole > available:
        fitting = _largest_fitting(needed, training, available)
    return RungNeeds(
        rung=weights.rung,
        load_peak_bytes=own + weights.load_peak_bytes,
        steady_bytes=own + weights.model_bytes,
        training_bytes=whole,
        fitting=fitting,
    )


def _largest_fitting(
    needed: Callable[[Training], int | None], training: Training, available: int
) -> FittingBatch | None:
    while (smaller := halve(training)) is not None:
        part = needed(smaller)
        if part is not None and part <= available:
            return FittingBatch(
                per_device_train_batch_size=smaller.per_device_train_batch_size,
                gradient_accumulation_steps=smaller.gradient_accumulation_steps,
                training_bytes=part,
            )
        training = smaller
    return None


def _available_bytes(device: torch.device, processes: int, own: int) -> int | None:
    """What each process of the run may take; without a GPU they share the host's memory, and what this one holds."""
    free = free_bytes(device)
    if free is None or device.type == "cuda":
        return free
    return (free + own) // processes


def count_steps(mix: Mix, training: Training, gpus: int = 1) -> int:
    """Optimizer steps of the whole run, as transformers' trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    rows = len(mix.input_ids)
    if training.packing:
        rows = len(
            pack_dataset(
                Dataset.from_dict({"input_ids": mix.input_ids}), training.max_length, training.packing_strategy
            )
        )
    batches = math.ceil(rows / (training.per_device_train_batch_size * gpus))
    return math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))


def _estimate_ladder(
    spec: RunSpec, source: BaseModel, config: PretrainedConfig, compute_dtype: torch.dtype
) -> Iterator[WeightEstimate]:
    """The rungs in order, without those that the ladder will pass over because the files are quantized otherwise."""
    for rung in spec.project.quantization.ladder:
        with suppress(EffectiveRungError):
            yield estimate_weights(source, config, rung, spec.project.quantization, compute_dtype)


def main(arguments: list[str]) -> int:
    """Print what was found; exit 0, or 1 when something stands in the way."""
    spec = RunSpec.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        result, status = preflight(spec, load_settings()).model_dump_json(), 0
    except QLoRAError as error:
        found = {"code": error.code, "message": redact(error.message), "hint": error.hint and redact(error.hint)}
        result, status = json.dumps(found), 1
    sys.stdout.write(result + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
