"""What to say when not even one row fits: what it takes, what there is, and what would fit. Arithmetic, no trial."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from runner.errors import MemoryExhaustedError
from runner.hyperparameters import Training
from runner.spec import ProjectSpec
from runner.training.data.mix import Mix
from runner.training.loop.training_estimate import estimate_training

_MB = 1_000_000
_STEP_TOKENS = 8
_MARGIN = 0.9
"""A step that was tried and failed needs more than there is, whatever the arithmetic says."""


def one_row_does_not_fit(
    config: PretrainedConfig,
    project: ProjectSpec,
    mix: Mix,
    trainable_parameters: int,
    compute_dtype: torch.dtype,
    *,
    room: int,
) -> MemoryExhaustedError:
    """Make the error, with figures.

    Args:
        config: Of the base model.
        project: As it was tried, its batch size aside.
        mix: The rows.
        trainable_parameters: Of the adapter.
        compute_dtype: Of the activations.
        room: Bytes that a step may take beside the loaded model.
    """

    def needed(rows: int, *, checkpointing: bool) -> int:
        changes = {"per_device_train_batch_size": rows, "gradient_checkpointing": checkpointing}
        training = project.training.model_copy(update=changes)
        tried = project.model_copy(update={"training": training})
        return estimate_training(config, tried, mix, trainable_parameters, compute_dtype)

    training = project.training
    tokens = _longest(training, mix)
    whole = needed(1, checkpointing=training.gradient_checkpointing)
    budget = min(room, int(whole * _MARGIN))
    advice = []
    for checkpointing in sorted({training.gradient_checkpointing, True}):
        need = needed(1, checkpointing=checkpointing)
        a_row = needed(2, checkpointing=checkpointing) - need
        fixed = need - a_row
        switch = "training.gradient_checkpointing = true"
        prefix = f"{switch} and " if checkpointing and not training.gradient_checkpointing else ""
        if prefix and need <= budget:
            advice.append(f"{switch} (about {_megabytes(need)})")
            continue
        fitting = int((budget - fixed) / (a_row / tokens)) // _STEP_TOKENS * _STEP_TOKENS
        if fitting >= _STEP_TOKENS:
            estimate = _megabytes(fixed + int(a_row * fitting / tokens))
            advice.append(f"{prefix}training.max_length = {fitting} (about {estimate})")
    adapter = whole - (needed(2, checkpointing=training.gradient_checkpointing) - whole)
    if project.lora.r > 1 and adapter > (whole - budget):
        advice.append(f"lora.r = {project.lora.r // 2} (about {_megabytes(adapter // 2)} less)")
    hint = (
        f"What would fit: {'; or '.join(advice)}." if advice else "No setting makes it fit: use a smaller base model."
    )
    return MemoryExhaustedError(
        f"Not even one row of {tokens} tokens at a time fits into memory: a step takes about {_megabytes(whole)} "
        f"beside the loaded base model, of which {_megabytes(adapter)} for adapter, gradients and optimizer, and "
        f"{_megabytes(room)} are free.",
        hint=f"{hint} A pool with more memory helps, too.",
    )


def _longest(training: Training, mix: Mix) -> int:
    return training.max_length if training.packing else max(map(len, mix.input_ids))


def _megabytes(number: int) -> str:
    return f"{number / 1000 / _MB:,.1f} GB" if number >= 1000 * _MB else f"{max(number, 0) / _MB:,.0f} MB"
